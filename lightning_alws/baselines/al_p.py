"""Amortised learning with a parametric sampler (AL-P): an alternative to kernel ridge regression without its guarantee.

    sampler  ẑ = S_γ(x, ε),  ε ~ N(0, I);   Ĵ_γ(x) = (1/M) Σ_m log p_θ(x|S_γ(x, ε_m))
    sleep    γ ← Adam( mean_n (Ĵ_γ(x_n) − log p_θ(x_n|z_n))² ),   z_n, x_n ~ p_θ   (θ held)
    wake     θ ← Adam( −mean Ĵ_γ(x*) )                                              (ẑ held)

With M = 1 and the prior left out on both sides this is what the authors of amortised learning tried and found wanting
(kevin-w-li/al-ws, the image notebook's ``ConvEstimator``). The fault is the sleep objective's. Of ẑ it asks one number,
log p_θ(x|ẑ), which is the same all over a surface, while ∇_θ log p_θ(x|ẑ) differs along it; and a spread of it over
draws only adds to the error, so that ε ends up unused. So γ may be at its optimum with a gradient of
θ that is not E[∇_θ log p_θ(z, x)|x] (``benchmarks/gradient_error_rivals.py`` measures it; draws from p_θ(z|x) in place
of S would make it exact). Nor does anything tie ẑ of a real image to the prior: the model can learn images in a region
that the prior never visits, where sleep samples do not reach and J goes on rising.

Unlike the published network, ours has no BatchNorm, so that sleep and wake batches pass the same function.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_alws.baselines.image import EncoderBuilder, ImageMethod
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.generative import LatentVariableModel
from lightning_alws.held import held
from lightning_alws.networks import ConvFeatures, mlp


class Sampler(nn.Module):
    """S_γ(x, ε): features of x and standard normal noise, joined, through one hidden layer to z.

    Args:
        encoder: from observations (B, *event) to features (B, F).
        event_shape: shape of one observation.
        latent_dim: dimension of z, and of ε.
        hidden: width of the hidden layer.
    """

    def __init__(self, encoder: nn.Module, event_shape: tuple[int, ...], latent_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.features = nn.Sequential(encoder, nn.ReLU())
        with torch.no_grad():
            width = self.features(torch.zeros(1, *event_shape)).shape[1]
        self.head = mlp([width + latent_dim, hidden, latent_dim])
        self.latent_dim = latent_dim

    def forward(self, x: Tensor, particles: int) -> Tensor:
        """ẑ for observations x (B, *event), shape (particles, B, latent_dim)."""
        features = self.features(x).expand(particles, -1, -1)
        noise = torch.randn(particles, len(x), self.latent_dim, dtype=features.dtype, device=features.device)
        return self.head(torch.cat([features, noise], dim=-1))


def particle_expectation(model: LatentVariableModel, z: Tensor, x: Tensor) -> Tensor:
    """Ĵ(x_b) = (1/M) Σ_m log p_θ(x_b|z_mb) for particles (M, B, latent_dim) and x (B, *event), shape (B,).

    log p_θ(z_mb) is added where the prior has parameters, which would not be learnt otherwise.
    """
    flat = z.flatten(0, 1)
    values = model.likelihood(flat).log_prob(x.repeat(len(z), *[1] * (x.ndim - 1)))
    if model.prior_is_learnt:
        values = values + model.log_prior(flat)
    return values.view(z.shape[:2]).mean(0)


def sampler_error(model: LatentVariableModel, sampler: Sampler, sleep_samples: int, particles: int) -> Tensor:
    """mean_n (Ĵ_γ(x_n) − log p_θ(x_n|z_n))² over fresh sleep samples, a scalar in nats²; a function of γ alone."""
    with held(model):
        sleep = model.sleep(sleep_samples)
        predicted = particle_expectation(model, sampler(sleep.x, particles), sleep.x)
        return (predicted - sleep.joint.log_joint).square().mean()


class ParticleLearning(ImageMethod):
    """AL-P on images.

    Args:
        encoder: builds the network from images to the features that the sampler takes.
        sleep_samples: sleep samples in each step (published: 100).
        particles: M, draws of ẑ for each image, asleep and awake (published: 1).
        hidden: width of the sampler's hidden layer, between features with noise and ẑ.
        settings: those of :class:`~lightning_alws.baselines.image.ImageMethod`.

    Raises:
        UserError: a setting makes no sense, or latents are no vectors of real numbers.
    """

    def __init__(
        self,
        encoder: EncoderBuilder = ConvFeatures,
        sleep_samples: int = 100,
        particles: int = 1,
        hidden: int = 256,
        **settings: Any,
    ) -> None:
        check_at_least("model", sleep_samples=(sleep_samples, 1), particles=(particles, 1), hidden=(hidden, 1))
        super().__init__(**settings)
        if not self.generative.latents_are_real:
            raise UserError(
                f"model.prior is {type(self.generative.prior).__name__}, whose latents are not real numbers alone, as "
                "those of a sampler are; take a prior over real numbers, such as StandardNormal."
            )
        self.sampler = Sampler(encoder(self.image_shape), self.image_shape, self.latent_dim, hidden)
        self.sleep_samples, self.particles = sleep_samples, particles

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """One update of the sampler on sleep samples and one of the model on real images, in one loss."""
        with self.noise("sleep"):
            error = sampler_error(self.generative, self.sampler, self.sleep_samples, self.particles)
        with self.noise("particles"):
            objective = self.wake(x, self.generative).mean()
        self.log("train/sampler_error", error.detach())
        self.log("train/objective", objective.detach(), prog_bar=True)
        return error - objective

    def wake(self, x: Tensor, model: LatentVariableModel) -> Tensor:
        """Ĵ_γ(x) for images x (B, C, H, W), shape (B,); differentiable in θ alone. No bound of any likelihood."""
        with torch.no_grad():
            z = self.sampler(x, self.particles)
        return particle_expectation(model, z, x)

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        """Log Ĵ_γ of the evaluated model on held-out images."""
        with self.noise("validation", batch_idx), torch.no_grad():
            objective = self.wake(x, cast(LatentVariableModel, self.evaluation_model)).mean()
        self.log("val/objective", objective, sync_dist=True, batch_size=len(x))
