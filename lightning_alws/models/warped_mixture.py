"""A mixture of Gaussians bent by a network: clusters of any shape, found as the mixture's components.

    k ~ Cat(softmax(α)),   v|k ~ N(μ_k, C_k C_kᵀ + 1e-6 I),   x|v ~ N(network(v), diag σ²)

Source: the pinwheel experiment of kevin-w-li/al-ws (hierarchical mixture). The same idea with a Gaussian process in
place of the network: Iwata, Duvenaud, Ghahramani, "Warped mixtures for nonparametric cluster shapes", UAI 2013.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import DiagonalGaussian, Likelihood
from lightning_alws.models.prior_model import PriorModel
from lightning_alws.networks import mlp, small_normal
from lightning_alws.priors import GaussianMixturePrior


class WarpedMixture(PriorModel):
    """p_θ(k, v) p_θ(x|v); latents packed as (k, v), shape (N, 1 + latent_dim).

    Args:
        event_shape: (D,), from the data module.
        components: K.
        latent_dim: dimension of v.
        hidden: widths of the network's hidden layers.
        weight_std: standard deviation of the network's initial weights; None for PyTorch's initialisation.
        log_scale: log σ at first, in each of the D dimensions.
        covariance: of the components, "full" or "diagonal".

    Raises:
        UserError: the data are no vectors, or a number makes no sense.
    """

    prior: GaussianMixturePrior

    def __init__(
        self,
        event_shape: tuple[int, ...] | None,
        components: int = 10,
        latent_dim: int = 2,
        hidden: list[int] = [20],  # noqa: B006
        weight_std: float | None = 0.2,
        log_scale: float = -1.0,
        covariance: Literal["full", "diagonal"] = "full",
    ) -> None:
        if event_shape is None or len(event_shape) != 1:
            raise UserError(
                f"the data's event_shape is {event_shape}, but a warped mixture makes vectors (D,); use Pinwheel, "
                "Table, or another data module of vectors."
            )
        check_at_least("model", components=(components, 1), latent_dim=(latent_dim, 1))
        super().__init__(GaussianMixturePrior(components, latent_dim, covariance=covariance))
        self.network = mlp([latent_dim, *hidden, event_shape[0]])
        if weight_std is not None:
            small_normal(self.network, weight_std)
        self.log_scale = nn.Parameter(torch.full(tuple(event_shape), float(log_scale)))

    @property
    def scale(self) -> Tensor:
        """σ, shape (D,)."""
        return self.log_scale.exp()

    def likelihood(self, z: Tensor) -> Likelihood:
        return DiagonalGaussian(self.network(self.prior.values(z)), self.log_scale)

    def watched(self) -> dict[str, Tensor]:
        noise = {f"noise_scale_{d}": scale for d, scale in enumerate(self.scale)}
        weights = {f"weight_{k}": weight for k, weight in enumerate(self.prior.probabilities)}
        return noise | weights


class WarpedMixtureModel(AmortisedLearning):
    """A warped mixture trained by amortised learning.

    Args:
        components: K.
        latent_dim: dimension of the mixture's values v.
        hidden: widths of the network's hidden layers.
        learning: how it is trained; a penalty on ``prior.log_probabilities`` decides how many components survive.
        weight_std: standard deviation of the network's initial weights; null for PyTorch's initialisation.
        log_scale: of the noise at first.
        covariance: of the components, "full" or "diagonal".
        event_shape: (D,); comes from the data module.
    """

    def __init__(
        self,
        components: int = 10,
        latent_dim: int = 2,
        hidden: list[int] = [20],  # noqa: B006
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        weight_std: float | None = 0.2,
        log_scale: float = -1.0,
        covariance: Literal["full", "diagonal"] = "full",
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(
            WarpedMixture(event_shape, components, latent_dim, hidden, weight_std, log_scale, covariance), learning
        )
        self.save_hyperparameters()
