"""A Gaussian kernel on normal scores: each dimension is first bent so that the sleep samples are normal in it.

    k(x, x') = exp(−‖g(x) − g(x')‖² / (2 s²)),   g_d(x) = Φ⁻¹(rank of x_d among the N sleep samples / N)

Where observations are dense the kernel is narrow in x, and wide in their tails: a skewed law, such as a softplus makes,
has no one bandwidth in x that suits both. Normal scores are Blom's, "Statistical estimates and transformed
beta-variables", 1958, with ranks at (n − ½)/N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_alws.kernels import FeatureNetwork, GaussianKernel


class QuantileKernel(GaussianKernel):
    """The Gaussian kernel on normal scores, for observations of few dimensions whose marginals are far from normal.

    Between two sleep samples scores are interpolated; beyond the outermost ones they stay at theirs, so that a query
    far outside is predicted like the nearest samples, and not at zero.

    Args:
        event_shape: shape of one observation.
        bandwidth: s, in standard deviations of the scores.
        features: builds g from the event shape, few numbers of an observation whose scores are to be taken.

    Raises:
        UserError: the bandwidth is not positive.
    """

    def __init__(
        self, event_shape: tuple[int, ...], bandwidth: float = 1.0, features: FeatureNetwork | None = None
    ) -> None:
        super().__init__(event_shape, features, bandwidth)
        self._sorted = torch.empty(0)

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Take the order of the sleep features (N, d) of this regression."""
        self._sorted = features.T.sort(dim=1).values.contiguous()

    def gram(self, features: Tensor) -> Tensor:
        return super().gram(self.scores(features))

    def cross(self, features: Tensor, query: Tensor) -> Tensor:
        return super().cross(self.scores(features), self.scores(query))

    def scores(self, features: Tensor) -> Tensor:
        """The normal scores of features (M, d), shape (M, d)."""
        known = self._sorted.to(features.dtype)
        count = known.shape[1]
        above = torch.searchsorted(known, features.T.contiguous()).clamp(1, count - 1)
        lower, upper = known.gather(1, above - 1), known.gather(1, above)
        gap = (upper - lower).clamp_min(torch.finfo(known.dtype).tiny)
        share = ((features.T - lower) / gap).clamp(0, 1)
        levels = (torch.arange(count, device=known.device, dtype=known.dtype) + 0.5) / count
        normal = torch.special.ndtri(levels)
        return torch.lerp(normal[above - 1], normal[above], share).T
