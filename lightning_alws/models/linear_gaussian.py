"""Factor analysis, z ~ N(0, I), x|z ~ N(Wz + b, diag σ²), whose likelihood has a closed form: a check on the learning.

    log p_θ(x) = log N(x; b, WWᵀ + diag σ²)

W is determined up to a rotation of the latents only; the covariance is what can be compared.
Source: Rubin and Thayer, "EM algorithms for ML factor analysis", Psychometrika 47, 1982.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import LOG_2_PI, DiagonalGaussian, Likelihood


class LinearGaussianGenerator(LatentVariableModel):
    """p(z) = N(0, I), p_θ(x|z) = N(Wz + b, diag σ²).

    Args:
        event_shape: (D,), from the data module.
        latent_dim: dimension of z.

    Attributes:
        loadings: W (D, latent_dim), at first independent normals that give each Wz_d a variance of about 1.
        offset: b (D,), at first 0.
        log_scale: log σ (D,), at first 0.

    Raises:
        UserError: the observations are no rows of numbers, or the number of latents makes no sense.
    """

    def __init__(self, event_shape: tuple[int, ...] | None, latent_dim: int = 3) -> None:
        super().__init__()
        if event_shape is None:
            raise UserError(
                "the data module has no attribute 'event_shape', which a linear Gaussian model takes from it; use "
                "LinearGaussianData or Table, or define event_shape (D,) in yours."
            )
        if len(event_shape) != 1:
            raise UserError(
                f"the data have observations of shape {tuple(event_shape)}, but a linear Gaussian model takes rows of "
                "numbers (D,); flatten them."
            )
        if not 1 <= latent_dim < event_shape[0]:
            raise UserError(
                f"model.latent_dim is {latent_dim} for observations of {event_shape[0]} numbers; give at least 1 and "
                "less than those."
            )
        self.loadings = nn.Parameter(torch.randn(event_shape[0], latent_dim) / latent_dim**0.5)
        self.offset = nn.Parameter(torch.zeros(event_shape[0]))
        self.log_scale = nn.Parameter(torch.zeros(event_shape[0]))

    def sample_prior(self, count: int) -> Tensor:
        weight = self.loadings
        return torch.randn(count, weight.shape[1], device=weight.device, dtype=weight.dtype)

    def log_prior(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2_PI).sum(-1)

    def likelihood(self, z: Tensor) -> Likelihood:
        return DiagonalGaussian(z @ self.loadings.T + self.offset, self.log_scale)

    @property
    def covariance(self) -> Tensor:
        """WWᵀ + diag σ², of the observations, shape (D, D)."""
        return self.loadings @ self.loadings.T + (2 * self.log_scale).exp().diag()

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p_θ(x) in nats, exact, for x (B, D), shape (B,); computed and returned in float64."""
        return MultivariateNormal(self.offset.double(), self.covariance.double()).log_prob(x.double())

    def watched(self) -> dict[str, Tensor]:
        scale = self.log_scale.exp()
        return {"noise_scale_least": scale.min(), "noise_scale_greatest": scale.max()}


class LinearGaussianModel(AmortisedLearning):
    """Factor analysis learnt by amortised learning.

    Args:
        latent_dim: number of factors.
        learning: how it is trained.
        event_shape: (D,); comes from the data module.
    """

    def __init__(
        self,
        latent_dim: int = 3,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(LinearGaussianGenerator(event_shape, latent_dim), learning)
        self.save_hyperparameters()
