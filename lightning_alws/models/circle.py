"""A latent on the unit circle: z = (cos a, sin a) with a ~ U(−π, π), a decoder network, Gaussian pixels.

No Gaussian posterior can live on a circle; amortised learning never needs one. Source: the Gabor experiment of
kevin-w-li/al-ws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.kernels import squared_distances
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import LOG_2_PI, Likelihood
from lightning_alws.models.image import GaussianPixels
from lightning_alws.models.prior_model import PriorModel
from lightning_alws.networks import DCGANDecoder, Decoder
from lightning_alws.priors import CirclePrior


def on_circle(angle: Tensor) -> Tensor:
    """z = (cos a, sin a) for angles (n,) in radians, shape (n, 2)."""
    return torch.stack([angle.cos(), angle.sin()], dim=1)


class CircleGenerator(PriorModel):
    """p(z) uniform on the unit circle, p_θ(x|z) = N(tanh(decoder(z)), σ² I), σ² = floor² + s², s learnt (1 at first).

    Args:
        event_shape: (C, H, W), from the data module.
        decoder: builds the decoder from the two coordinates of z and ``event_shape``.
        noise_floor: least σ.

    Raises:
        UserError: the event shape is missing, or the noise floor makes no sense.
    """

    def __init__(
        self, event_shape: tuple[int, ...] | None, decoder: Decoder = DCGANDecoder, noise_floor: float = 0.0
    ) -> None:
        if event_shape is None:
            raise UserError(
                "the data module has no attribute 'event_shape', which a model on the circle takes from it; use a "
                "data module of arrays, such as Gabors, or define event_shape in yours."
            )
        if not 0 <= noise_floor < 1:
            raise UserError(
                f"model.noise_floor is {noise_floor}; give at least 0, and less than 1 for pixels in [-1, 1]."
            )
        super().__init__(CirclePrior())
        self.decoder = decoder(2, tuple(event_shape))
        self.pixels = GaussianPixels(noise_floor)

    def likelihood(self, z: Tensor) -> Likelihood:
        # Back to the dtype of z where autocast lowered it.
        return self.pixels(self.decoder(z).to(z.dtype))

    def watched(self) -> dict[str, Tensor]:
        return {"noise_scale": self.pixels.scale}

    def turn(self, points: int) -> Tensor:
        """``points`` latents at equal steps of angle, once around from −π, shape (points, 2)."""
        like = self.pixels.log_scale
        angle = 2 * math.pi * torch.arange(points, device=like.device, dtype=like.dtype) / points - math.pi
        return on_circle(angle)

    def log_marginal(self, x: Tensor, points: int = 2048) -> Tensor:
        """log p_θ(x) for x (B, *event), shape (B,); differentiable in θ.

        By the rule of equal steps in the angle, for any θ. The steps must resolve the posterior, of width
        σ / ‖dμ/da‖ radians; beyond that a smooth decoder leaves no error, one with ReLU an error of order points⁻²,
        and points⁻¹ in the gradient.
        """
        likelihood = self.likelihood(self.turn(points))
        x, mean = x.flatten(1), likelihood.mean.flatten(1)
        squared = squared_distances(x, mean)
        log_scale = self.pixels.scale.log()
        log_prob = -0.5 * (squared * (-2 * log_scale).exp() + x.shape[1] * (LOG_2_PI + 2 * log_scale))
        return log_prob.logsumexp(1) - math.log(points)


class CircleModel(AmortisedLearning):
    """A deep generative model with a latent on the unit circle, trained by amortised learning.

    Args:
        decoder: the network from z = (cos a, sin a) to the observation.
        learning: how it is trained.
        noise_floor: least noise scale σ of the pixels in [−1, 1]; 0 for none.
        event_shape: (C, H, W); comes from the data module.
    """

    def __init__(
        self,
        decoder: Decoder = DCGANDecoder,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        noise_floor: float = 0.1,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(CircleGenerator(event_shape, decoder, noise_floor), learning)
        self.save_hyperparameters()
