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


class GaussianKernel(nn.Module):
    """k(x, x') = exp(−‖g(x) − g(x')‖² / (2 s²)), features g optional (the flattened x without them).

    The bandwidth s is kept as log s and set by :meth:`initialise` to the median distance between features.
    Source: section 0 of the published experiments (kevin-w-li/al-ws, ``Kernel`` with p = ∞).

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
            raise UserError(f"the kernel's bandwidth is {bandwidth}; give a positive number or leave it out (median rule).")
        self.network = features(event_shape) if features is not None else nn.Flatten()
        self.log_bandwidth = nn.Parameter(torch.tensor(float(bandwidth or 1.0)).log())
        self.by_median = bandwidth is None

    def features(self, x: Tensor) -> Tensor:
        """g(x) for x (N, *event), shape (N, d), in at least float32."""
        with full_precision(x.device):
            return self.network(x).flatten(1)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """The median rule: s = median of ‖g(x_i) − g(x_j)‖ over pairs of a sleep batch x (N, *event), N ≥ 2."""
        if not self.by_median:
            return
        features = self.features(x)
        above = torch.triu_indices(len(x), len(x), 1, device=x.device)
        distances = squared_distances(features, features)[above[0], above[1]].sqrt()
        # numpy's median (mean of the two middle values) is what the published code uses; torch's takes the lower one.
        median = distances.double().quantile(0.5) if len(distances) < 2**24 else distances.median()
        self.log_bandwidth.copy_(median.clamp_min(torch.finfo(features.dtype).tiny).log())

    def gram(self, features: Tensor) -> Tensor:
        """K_ij = k(x_i, x_j) from features (N, d), shape (N, N), exactly 1 on the diagonal."""
        eye = torch.eye(len(features), dtype=torch.bool, device=features.device)
        return self._of_squared_distances(squared_distances(features, features).masked_fill(eye, 0.0))

    def cross(self, features: Tensor, query: Tensor) -> Tensor:
        """k(x_i, x*_b) from features (N, d) and (B, d), shape (N, B)."""
        return self._of_squared_distances(squared_distances(features, query))

    def _of_squared_distances(self, squared: Tensor) -> Tensor:
        return torch.exp(-0.5 * (-2 * self.log_bandwidth.to(squared.dtype)).exp() * squared)
