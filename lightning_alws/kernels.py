"""Kernels on observations, k(x, x'), on optional feature networks, with the bandwidth set by the median rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError

FeatureNetwork = Callable[[tuple[int, ...]], nn.Module]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast and TensorFloat-32 off: with either, a Gram matrix is 10-100 % wrong where the mean is 10 σ away."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖² for a (N, d) and b (M, d), shape (N, M), by expansion and never negative.

    Both sides are first shifted by the mean of ``a``: without it, features far from the origin lose all digits of
    their differences in float32.
    """
    centre = a.detach().mean(0)
    a, b = a - centre, b - centre
    return torch.addmm(a.square().sum(1, keepdim=True) + b.square().sum(1), a, b.T, alpha=-2).clamp_min(0)


EVERY_STEP_ROWS = 300  # 45 000 pairs: the median within a per cent or so, in a millisecond


def median_distance(features: Tensor) -> Tensor:
    """The median of ‖g_i − g_j‖ over pairs i < j of features (N, d), N ≥ 2; a scalar, never 0."""
    above = torch.triu_indices(len(features), len(features), 1, device=features.device)
    distances = squared_distances(features, features)[above[0], above[1]].sqrt()
    # The mean of the two middle values, as numpy's median in the published code; torch's is the lower one.
    return distances.double().quantile(0.5).to(features.dtype).clamp_min(torch.finfo(features.dtype).tiny)


class GaussianKernel(nn.Module):
    """k(x, x') = exp(−‖g(x) − g(x')‖² / (2 s²)), features g optional (the flattened x without them).

    The bandwidth s is kept as log s and set by :meth:`initialise` to the median distance between features.
    Source: the published code (kevin-w-li/al-ws, ``Kernel`` with p = ∞).

    Args:
        event_shape: shape of one observation.
        features: builds g from the event shape; no BatchNorm, since sleep and wake batches would then be normalised
            differently.
        bandwidth: s, instead of the median rule.
    """

    def __init__(
        self, event_shape: tuple[int, ...], features: FeatureNetwork | None = None, bandwidth: float | None = None
    ) -> None:
        super().__init__()
        if bandwidth is not None and not bandwidth > 0:
            raise UserError(
                f"the kernel's bandwidth is {bandwidth}; give a positive number or leave it out (median rule)."
            )
        self.network = features(event_shape) if features is not None else nn.Flatten()
        self.log_bandwidth = nn.Parameter(torch.tensor(float(bandwidth or 1.0)).log())
        self.by_median = bandwidth is None

    def features(self, x: Tensor) -> Tensor:
        """g(x) for x (N, *event), shape (N, d), in at least float32."""
        with full_precision(x.device):
            return self.network(x).flatten(1)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """The median rule, from sleep observations x (N, *event) of the initial model, N ≥ 2."""
        if self.by_median:
            self.log_bandwidth.copy_(median_distance(self.features(x)).log())

    def observe(self, features: Tensor) -> None:
        """Called with the sleep features (N, d) of each regression, before :meth:`gram`; here of no effect."""

    def gram(self, features: Tensor) -> Tensor:
        """K_ij = k(x_i, x_j) from features (N, d), shape (N, N), exactly 1 on the diagonal."""
        eye = torch.eye(len(features), dtype=torch.bool, device=features.device)
        return self._of_squared_distances(squared_distances(features, features).masked_fill(eye, 0.0))

    def cross(self, features: Tensor, query: Tensor) -> Tensor:
        """k(x_i, x*_b) from features (N, d) and (B, d), shape (N, B)."""
        return self._of_squared_distances(squared_distances(features, query))

    @property
    def bandwidth(self) -> Tensor:
        """s, a scalar."""
        return self.log_bandwidth.exp()

    def _of_squared_distances(self, squared: Tensor) -> Tensor:
        return torch.exp(-0.5 * squared / self.bandwidth.to(squared.dtype).square())


class MedianKernel(GaussianKernel):
    """The Gaussian kernel whose bandwidth follows the model: s = c · median distance between current sleep features.

    The published kernel keeps the bandwidth of the initial model, which makes noise; once the samples resemble data
    their distances are smaller, the kernel is too wide, and the weights grow large with both signs.

    Args:
        event_shape: shape of one observation.
        features: builds g from the event shape.
        multiple: c; trained where the kernel is.
    """

    median: Tensor

    def __init__(
        self, event_shape: tuple[int, ...], features: FeatureNetwork | None = None, multiple: float = 1.0
    ) -> None:
        super().__init__(event_shape, features, bandwidth=multiple)
        self.register_buffer("median", torch.ones(()))

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Set the median from the sleep features (N, d) of this regression."""
        self.median.copy_(median_distance(features[:EVERY_STEP_ROWS]))

    @property
    def bandwidth(self) -> Tensor:
        return self.log_bandwidth.exp() * self.median
