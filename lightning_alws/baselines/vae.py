"""The variational autoencoder around any latent-variable model, with a factorised Gaussian or Laplace posterior.

    ELBO(x) = E_q(z|x)[log p_θ(x|z)] − KL(q(z|x) ‖ p_θ(z)) ≤ log p_θ(x),   q(z_i|x) = F(location_i(x), scale_i(x))

maximised in θ and in the encoder, one reparameterised draw z = location + scale · ε for each observation. Sources:
Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014 (https://arxiv.org/abs/1312.6114); Rezende, Mohamed,
Wierstra, ICML 2014 (https://arxiv.org/abs/1401.4082).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_alws.baselines.image import EncoderBuilder, ImageEncoderMethod
from lightning_alws.baselines.lower_bound import LowerBoundMethod, log_joint
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.generative import LatentVariableModel
from lightning_alws.likelihoods import LOG_2_PI
from lightning_alws.networks import ConvFeatures, mlp
from lightning_alws.priors import LaplacePrior, Prior, StandardNormal


class Posterior(ABC):
    """q(z|x) for B observations, independent over entries of z.

    Args:
        location: (B, latent_dim), or (S, B, latent_dim) for S draws of each.
        log_scale: of the same shape.
    """

    def __init__(self, location: Tensor, log_scale: Tensor) -> None:
        self.location, self.log_scale = location, log_scale

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @abstractmethod
    def sample(self) -> Tensor:
        """One draw for each observation, (B, latent_dim), differentiable in location and scale."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z_b|x_b), shape (B,)."""

    @abstractmethod
    def divergence(self, prior: Prior | None) -> Tensor | None:
        """KL(q ‖ prior) in closed form, shape (B,), or None where it has none."""


class GaussianPosterior(Posterior):
    """q(z_i|x) = N(location_i, scale_i²)."""

    def sample(self) -> Tensor:
        return self.location + self.scale * torch.randn_like(self.location)

    def log_prob(self, z: Tensor) -> Tensor:
        standard = (z - self.location) / self.scale
        return -(0.5 * standard.square() + self.log_scale + 0.5 * LOG_2_PI).sum(-1)

    def divergence(self, prior: Prior | None) -> Tensor | None:
        """½ Σ (location² + scale² − 1) − log scale, from a standard normal."""
        if not isinstance(prior, StandardNormal):
            return None
        return (0.5 * (self.location.square() + self.scale.square() - 1) - self.log_scale).sum(-1)


class LaplacePosterior(Posterior):
    """q(z_i|x) = Laplace(location_i, scale_i), density exp(−|z − location|/scale) / (2 scale)."""

    def sample(self) -> Tensor:
        size = torch.empty_like(self.location).exponential_()
        return self.location + self.scale * torch.where(torch.rand_like(size) < 0.5, -size, size)

    def log_prob(self, z: Tensor) -> Tensor:
        return -((z - self.location).abs() / self.scale + self.log_scale + math.log(2)).sum(-1)

    def divergence(self, prior: Prior | None) -> Tensor | None:
        """Σ |location| + scale e^{−|location|/scale} − 1 − log scale, from Laplace(0, 1)."""
        if not isinstance(prior, LaplacePrior):
            return None
        size = self.location.abs()
        return (size + self.scale * torch.exp(-size / self.scale) - 1 - self.log_scale).sum(-1)


POSTERIORS: dict[str, type[Posterior]] = {"gaussian": GaussianPosterior, "laplace": LaplacePosterior}
LEAST_LOG_SCALE = -10.0  # scales of an untrained or diverged encoder stay above e^-10 and below e^5
LARGEST_LOG_SCALE = 5.0


class Encoder(nn.Module):
    """x → location and log scale of each latent, through fully connected layers with ReLU; none hidden: linear.

    Args:
        event_shape: shape of one observation.
        latent_dim: dimension of z.
        hidden: widths of the hidden layers.
    """

    def __init__(self, event_shape: tuple[int, ...], latent_dim: int, hidden: list[int]) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), mlp([math.prod(event_shape), *hidden, 2 * latent_dim]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return location_and_log_scale(self.net(x))


def location_and_log_scale(output: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of an encoder's output (B, 2 latent_dim), the second held where its exponential is a number."""
    location, log_scale = output.chunk(2, dim=-1)
    return location, log_scale.clamp(LEAST_LOG_SCALE, LARGEST_LOG_SCALE)


def posterior_family(name: str) -> type[Posterior]:
    """The class of a posterior by its name; a UserError for an unknown one."""
    if name not in POSTERIORS:
        raise UserError(f"model.posterior is {name!r}; choose one of {', '.join(POSTERIORS)}.")
    return POSTERIORS[name]


def elbo(q: Posterior, model: LatentVariableModel, x: Tensor) -> Tensor:
    """One-draw estimate of the lower bound for observations x (B, *event), shape (B,), in nats.

    The divergence is exact for a Gaussian posterior and ``StandardNormal`` prior, and for Laplace and ``LaplacePrior``,
    where the model holds it as ``prior``; estimated with the same draw otherwise.
    """
    return elbo_at(q.sample(), q, model, x)


def elbo_at(z: Tensor, q: Posterior, model: LatentVariableModel, x: Tensor) -> Tensor:
    """:func:`elbo` with z_b ~ q(z|x_b) already drawn, (B, latent_dim)."""
    divergence = q.divergence(getattr(model, "prior", None))
    if divergence is None:
        divergence = q.log_prob(z) - model.log_prior(z)
    return model.likelihood(z).log_prob(x) - divergence


def log_weights(q: Posterior, samples: int, model: LatentVariableModel, x: Tensor) -> Tensor:
    """log p_θ(z_sb, x_b) − log q(z_sb|x_b) for ``samples`` draws from each q(z|x_b), shape (samples, B)."""
    shape = (samples, *q.location.shape)
    repeated = type(q)(q.location.expand(shape), q.log_scale.expand(shape))
    z = repeated.sample()
    return log_joint(model, z, x) - repeated.log_prob(z)


class VariationalAutoencoder(LowerBoundMethod):
    """Trains a latent-variable model and a factorised posterior by the evidence lower bound (ELBO).

    Latents must be vectors of real numbers, z (N, latent_dim), drawn independently of any learnt parameter: the
    gradient goes through q(z|x), not through draws from the prior, which are only made for its shape.

    Args:
        generative: builds p_θ(z) p_θ(x|z) from the shape of one observation.
        posterior: family of q(z|x).
        hidden: widths of the encoder's hidden layers; none for a linear encoder.
        learning_rate: Adam's.
        averaging: decay of the averaged weights used for evaluation; 0 for none.
        event_shape: shape of one observation; comes from the data module.

    Raises:
        UserError: the event shape is missing, the latents are no vectors of real numbers, or a number makes no sense.
    """

    def __init__(
        self,
        generative: Callable[[tuple[int, ...]], LatentVariableModel],
        posterior: Literal["gaussian", "laplace"] = "gaussian",
        hidden: list[int] = [256],  # noqa: B006
        learning_rate: float = 1e-3,
        averaging: float = 0.0,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        if event_shape is None:
            raise UserError(
                "the data module has no attribute 'event_shape', the shape of one observation, which the encoder takes "
                "from it; define it in yours."
            )
        family = posterior_family(posterior)
        if not learning_rate > 0:
            raise UserError(f"model.learning_rate is {learning_rate}; give a positive number, such as 0.001.")
        for width in hidden:
            check_at_least("model", hidden=(width, 1))
        model = generative(tuple(event_shape))
        super().__init__(model, averaging)
        self.save_hyperparameters()
        z = model.sample_prior(2)
        if z.ndim != 2 or not z.is_floating_point():
            raise UserError(
                f"{type(model).__name__} has latents of shape {tuple(z.shape[1:])} and type {z.dtype}; a variational "
                "autoencoder with this posterior takes vectors of real numbers only: use amortised learning."
            )
        self.posterior_family = family
        self.encoder = Encoder(tuple(event_shape), z.shape[1], hidden).to(z.dtype)
        self.learning_rate = learning_rate

    def posterior(self, x: Tensor) -> Posterior:
        """q(z|x) for observations x (B, *event)."""
        return self.posterior_family(*self.encoder(x))

    def bound(self, x: Tensor, model: LatentVariableModel) -> Tensor:
        """One-draw estimate of the ELBO for observations x (B, *event), shape (B,), in nats."""
        return elbo(self.posterior(x), model, x)

    def log_weights(self, x: Tensor, samples: int, model: LatentVariableModel) -> Tensor:
        """log p_θ(z_sb, x_b) − log q(z_sb|x_b), z_sb ~ q, for observations x (B, *event), shape (samples, B)."""
        return log_weights(self.posterior(x), samples, model, x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, one group for the model and one for the encoder."""
        groups = [
            {"params": [*self.generative.parameters()], "name": "model"},
            {"params": [*self.encoder.parameters()], "name": "encoder"},
        ]
        return torch.optim.Adam(groups, lr=self.learning_rate)


class ImageVAE(ImageEncoderMethod):
    """The variational autoencoder on images: the decoder of amortised learning and a convolutional encoder.

    Args:
        encoder: builds the network from images to a vector of features, of which q's location and log scale are linear.
        posterior: family of q(z|x).
        settings: those of :class:`~lightning_alws.baselines.image.ImageMethod`.

    Raises:
        UserError: a setting makes no sense.
    """

    def __init__(
        self,
        encoder: EncoderBuilder = ConvFeatures,
        posterior: Literal["gaussian", "laplace"] = "gaussian",
        **settings: Any,
    ) -> None:
        super().__init__(encoder, **settings)
        self.posterior_family = posterior_family(posterior)
        self.heads = nn.Linear(self.feature_width, 2 * self.latent_dim)

    def posterior(self, x: Tensor) -> Posterior:
        """q(z|x) for images x (B, C, H, W)."""
        return self.posterior_family(*location_and_log_scale(self.heads(self.features(x))))

    def bound(self, x: Tensor, model: LatentVariableModel) -> Tensor:
        """One-draw estimate of the ELBO for images x (B, C, H, W), shape (B,), in nats."""
        return elbo(self.posterior(x), model, x)

    def log_weights(self, x: Tensor, samples: int, model: LatentVariableModel) -> Tensor:
        """log p_θ(z_sb, x_b) − log q(z_sb|x_b), z_sb ~ q, for images x (B, C, H, W), shape (samples, B)."""
        return log_weights(self.posterior(x), samples, model, x)
