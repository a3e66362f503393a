"""A Gaussian process seen through noise: z ~ GP(0, s² k_ℓ) on a grid, x|z ~ N(z, σ²I); ℓ, s and σ are learnt.

The prior has parameters, so that its log density is regressed beside the likelihood's. Everything is exact in closed
form (:mod:`lightning_alws.gaussian_process`): a check on the learning where latents are many and correlated.
Source: published code (kevin-w-li/al-ws), the model with a Gaussian-process latent and jitter 1e-4.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.gaussian_process import Hyperparameters, gram, log_density
from lightning_alws.generative import LatentVariableModel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import Gaussian, Likelihood


class GaussianProcessGenerator(LatentVariableModel):
    """p_θ(z) = N(0, K(ℓ, s)), p_θ(x|z) = N(z, σ²I) on T points, one sampling interval apart.

    Args:
        event_shape: (T,), from the data module.
        initial: ℓ, s and σ at first.

    Raises:
        UserError: the observations are no series, or a hyperparameter is not positive.
    """

    prior_is_learnt = True

    def __init__(self, event_shape: tuple[int, ...] | None, initial: Hyperparameters) -> None:
        super().__init__()
        if event_shape is None:
            raise UserError(
                "the data module has no attribute 'event_shape', which a Gaussian process takes from it; use "
                "GaussianProcessSeries or Table, or define event_shape (T,) in yours."
            )
        if len(event_shape) != 1 or event_shape[0] < 2:
            raise UserError(
                f"the data have observations of shape {tuple(event_shape)}, but a Gaussian process takes series of at "
                "least 2 points (T,); give one series a row."
            )
        initial.check("model.initial")
        self.points = event_shape[0]
        self.log_lengthscale, self.log_scale, self.log_noise = (
            nn.Parameter(logarithm.float()) for logarithm in initial.logarithms
        )

    @property
    def factor(self) -> Tensor:
        """The Cholesky factor of K (T, T), in float64: float32 leaves few digits of a smooth process's precision."""
        return torch.linalg.cholesky(
            gram(self.points, self.log_lengthscale.double().exp(), self.log_scale.double().exp())
        )

    @torch.no_grad()
    def sample_prior(self, count: int) -> Tensor:
        parameter = self.log_scale
        white = torch.randn(count, self.points, device=parameter.device, dtype=parameter.dtype)
        return (white.double() @ self.factor.T).to(white.dtype)

    def log_prior(self, z: Tensor) -> Tensor:
        return log_density(self.factor, z.double()).to(z.dtype)

    def likelihood(self, z: Tensor) -> Likelihood:
        return Gaussian(z, self.log_noise)

    @property
    def hyperparameters(self) -> Hyperparameters:
        """ℓ, s and σ as they stand."""
        values = (self.log_lengthscale, self.log_scale, self.log_noise)
        return Hyperparameters(*(float(value.detach().double().exp()) for value in values))

    def watched(self) -> dict[str, Tensor]:
        return {
            "lengthscale": self.log_lengthscale.exp(),
            "scale": self.log_scale.exp(),
            "noise": self.log_noise.exp(),
        }


class GaussianProcessModel(AmortisedLearning):
    """A Gaussian process seen through noise, its hyperparameters learnt by amortised learning.

    Args:
        learning: how it is trained.
        initial: ℓ (in sampling intervals), s and σ at first.
        event_shape: (T,); comes from the data module.
    """

    def __init__(
        self,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        initial: Hyperparameters = Hyperparameters(1.0, 1.0, 1.0),  # noqa: B008 (frozen)
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(GaussianProcessGenerator(event_shape, initial), learning)
        self.save_hyperparameters()

    def posterior_mean(self, x: Tensor) -> Tensor:
        """E[z|x] for series x (B, T), from the regression's weights, shape (B, T)."""
        posterior = self.amortised_posterior(x)
        return posterior.expectation(cast(Tensor, posterior.sleep.z))
