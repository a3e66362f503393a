"""What methods share whose q(z|x) has no divergence in closed form: bound and weights come from draws alone.

    L_K(x) = E_{z_1 … z_K ~ q(z|x)} log (1/K) Σ_k p_θ(x|z_k) [p_θ(z_k)/q(z_k|x)]^β

β rises from 0 to 1 over the first training steps where a source has it so; every bound that is logged has β = 1.

With K = 1 and a standard normal prior the noise log q_0(z_0) − log p(z_0) − KL(q_0 ‖ p) of the Gaussian draw z_0 ~ q_0
that z was made of is taken off: its mean is 0, so that the bound is the same, and where z = z_0 what is left is the
plain autoencoder's with its closed divergence. It matters: on Digits the plain autoencoder with a drawn divergence is
2 nats behind after 500 steps.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from lightning_alws.baselines.image import EncoderBuilder, ImageEncoderMethod
from lightning_alws.baselines.lower_bound import LowerBoundMethod, log_mean_weight
from lightning_alws.baselines.vae import GaussianPosterior
from lightning_alws.errors import check_at_least
from lightning_alws.generative import LatentVariableModel
from lightning_alws.networks import ConvFeatures
from lightning_alws.priors import Prior


@dataclass(frozen=True)
class Draws:
    """S draws from q(z|x_b) for each of B images.

    Attributes:
        z: (S, B, latent_dim).
        log_q: log q(z_sb|x_b), (S, B).
        source: the Gaussians q_0, (S, B, latent_dim).
        first: z_0 ~ q_0, of which z was made, (S, B, latent_dim).
    """

    z: Tensor
    log_q: Tensor
    source: GaussianPosterior
    first: Tensor

    def known_noise(self, prior: Prior | None) -> Tensor | float:
        """log q_0(z_0) − log p(z_0) − KL(q_0 ‖ p), (S, B), of mean 0; 0 where the divergence has no closed form."""
        divergence = self.source.divergence(prior)
        if prior is None or divergence is None:
            return 0.0
        return self.source.log_prob(self.first) - prior.log_prob(self.first) - divergence


class DrawnBound(ImageEncoderMethod):
    """A method on images that estimates all of its bound from K draws of its q(z|x).

    Args:
        encoder: builds the network from images to a vector of features.
        samples: K, draws from q(z|x) for each image; with 1 the bound is the ELBO, with more it is
            logged as ``importance_weighted_bound``.
        warm_up: training steps in which β rises, linearly in the global step, so that a resumed run goes on as an uncut
            one would; 0 for none.
        settings: those of :class:`~lightning_alws.baselines.image.ImageMethod`.

    Raises:
        UserError: a setting makes no sense.
    """

    def __init__(
        self, encoder: EncoderBuilder = ConvFeatures, samples: int = 1, warm_up: int = 0, **settings: Any
    ) -> None:
        check_at_least("model", samples=(samples, 1), warm_up=(warm_up, 0))
        super().__init__(encoder, **settings)
        self.samples, self.warm_up = samples, warm_up
        if samples > 1 and self.bound_name == LowerBoundMethod.bound_name:
            self.bound_name = "importance_weighted_bound"  # which is none to be told as an ELBO

    @abstractmethod
    def draw(self, x: Tensor, samples: int) -> Draws:
        """Draws from q(z|x_b) for images x (B, C, H, W).

        In place of q(z|x_b) a random density may stand, as long as E[f(z)/q] = ∫ f(z) dz.
        """

    @property
    def strength(self) -> float:
        """β in this training step."""
        return min(1.0, (self.global_step + 1) / self.warm_up) if self.warm_up else 1.0

    def log_weights(self, x: Tensor, samples: int, model: LatentVariableModel) -> Tensor:
        """log p_θ(z_sb, x_b) − log q(z_sb|x_b), z_sb ~ q, for images x (B, C, H, W), shape (samples, B)."""
        log_prob, log_ratio, _ = self._terms(x, samples, model)
        return log_prob + log_ratio

    def bound(self, x: Tensor, model: LatentVariableModel) -> Tensor:
        """One estimate of L_K for images x (B, C, H, W), shape (B,), in nats."""
        return self._bounds(x, model, 1.0)[0]

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """−mean bound of a batch, with the β of this step."""
        with self.noise("posterior"):
            bound, weighed = self._bounds(x, cast(LatentVariableModel, self.generative), self.strength)
        self.log(f"train/{self.bound_name}", bound.mean().detach(), prog_bar=True)
        return -weighed.mean()

    def _bounds(self, x: Tensor, model: LatentVariableModel, strength: float) -> tuple[Tensor, Tensor]:
        """Estimates of L_K with β = 1 and with another β, of the same draws, both (B,)."""
        log_prob, log_ratio, draws = self._terms(x, self.samples, model)
        if self.samples == 1:  # within the logarithm of a mean of several it would have a mean
            log_ratio = log_ratio + draws.known_noise(getattr(model, "prior", None))
        return log_mean_weight(log_prob + log_ratio), log_mean_weight(log_prob + strength * log_ratio)

    def _terms(self, x: Tensor, samples: int, model: LatentVariableModel) -> tuple[Tensor, Tensor, Draws]:
        """log p_θ(x_b|z_sb) and log p_θ(z_sb) − log q(z_sb|x_b), both (samples, B), and the draws."""
        draws = self.draw(x, samples)
        flat = draws.z.flatten(0, 1)
        log_prob = model.likelihood(flat).log_prob(x.repeat(samples, *[1] * (x.ndim - 1)))
        shape = draws.log_q.shape
        return log_prob.view(shape), model.log_prior(flat).view(shape) - draws.log_q, draws
