"""A polynomial kernel on standard scores: statistics in any units, standardised by the current sleep samples."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.kernels import FeatureNetwork, PolynomialKernel


class StandardKernel(PolynomialKernel):
    """k(x, x') = (c + ⟨u(x), u(x')⟩ / d)^p, u_i(x) = (g_i(x) − mean) / sd over the N sleep samples, within ±limit.

    With p = 1 the regression is linear in the statistics g_i. The sleep-centred gradient in direct form is then

        Cov(∇_θ log p_θ(z, x), g) (Cov(g) + ridge)⁻¹ (g(x*) − E g(x)),

    and, the covariance on the left being ∇_θ E g(x), that of the Gaussian synthetic likelihood of the statistics at
    given Cov(g) (Wood, "Statistical inference for noisy nonlinear ecological dynamic systems", 2010). It extrapolates,
    and so leads from samples that do not resemble the data to some that do, where a Gaussian kernel is blind.

    Args:
        event_shape: shape of one observation.
        features: builds g from the event shape.
        degree: p, a whole number, at least 1.
        offset: c, at least 0.
        limit: beyond which scores are cut off: a statistic that hardly varies over the samples would outweigh all
            others for data outside of them.

    Raises:
        UserError: degree, offset or limit are too small.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        features: FeatureNetwork | None = None,
        degree: int = 1,
        offset: float = 1.0,
        limit: float = 5.0,
    ) -> None:
        super().__init__(event_shape, features, bandwidth=1.0, degree=degree, offset=offset)
        if not limit > 0:
            raise UserError(f"the kernel's limit is {limit}; give a positive number of standard deviations, such as 5.")
        self.limit = limit
        self.register_buffer("mean", torch.zeros(()), persistent=False)
        self.register_buffer("deviation", torch.ones(()), persistent=False)

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Take mean and standard deviation of the sleep features (N, d) of this regression."""
        self.mean, self.deviation = features.mean(0), features.std(0).clamp_min(torch.finfo(features.dtype).tiny)

    def scores(self, features: Tensor) -> Tensor:
        """The standard scores of features (M, d), over √d, shape (M, d)."""
        scores = (features - self.mean.to(features.dtype)) / self.deviation.to(features.dtype)
        return scores.clamp(-self.limit, self.limit) / features.shape[1] ** 0.5

    def cross(self, features: Tensor, query: Tensor) -> Tensor:
        return super().cross(self.scores(features), self.scores(query))
