"""The deep generative image model: a prior, N(0, I) unless told, a decoder network, and the law of the pixels.

Source: the image experiments of kevin-w-li/al-ws; the decoder is a DCGAN generator without BatchNorm, or an MLP.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import Bernoulli, DiagonalGaussian, DiscretisedLogistic, Gaussian, Likelihood
from lightning_alws.models.prior_model import PriorModel, prior_over
from lightning_alws.networks import DCGANDecoder, Decoder
from lightning_alws.priors import PriorBuilder, StandardNormal

SQUEEZE = 1e-4  # Bernoulli means stay in [1e-4, 1 − 1e-4]: unbounded logits run away within some hundred steps


class BernoulliPixels(nn.Module):
    """Decoder output a (N, C, H, W) → Bernoulli with mean squeezed into [1e-4, 1 − 1e-4]."""

    def forward(self, output: Tensor) -> Likelihood:
        return Bernoulli.of_mean(output.sigmoid().mul(1 - 2 * SQUEEZE).add_(SQUEEZE))


class GaussianPixels(nn.Module):
    """Decoder output (N, C, H, W) → N(tanh(output), σ²) for pixels in [−1, 1]; σ² = floor² + s², s learnt (1 at first).

    The mean of pixels without bounds, such as standardised patches, is the output itself (kevin-w-li/al-ws has no tanh
    for those either).

    Where σ is small, the regression's signed weights make Σ_n W_n ‖x* − μ_n‖² negative for most images and the
    plug-in objective has no maximum in σ: it runs to 0. A floor restricts the model, not the estimator, whose
    gradient stays a consistent one of the likelihood.
    """

    def __init__(self, noise_floor: float, bounded: bool = True) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.noise_floor, self.bounded = noise_floor, bounded

    @property
    def scale(self) -> Tensor:
        """σ, a scalar."""
        return (self.noise_floor**2 + (2 * self.log_scale).exp()).sqrt()

    def mean(self, output: Tensor) -> Tensor:
        """E[x|z] (N, C, H, W)."""
        return output.tanh() if self.bounded else output

    def forward(self, output: Tensor) -> Likelihood:
        return Gaussian(self.mean(output), self.scale.log())


class ChannelGaussianPixels(GaussianPixels):
    """:class:`GaussianPixels` with a scale for each channel: x_c ~ N(mean_c, σ_c²), σ_c² = floor² + s_c²."""

    def __init__(self, channels: int, noise_floor: float, bounded: bool = True) -> None:
        super().__init__(noise_floor, bounded)
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    @property
    def scale(self) -> Tensor:
        """σ_c, shape (C, 1, 1)."""
        return super().scale

    def forward(self, output: Tensor) -> Likelihood:
        return DiagonalGaussian(self.mean(output), self.scale.log())


class LogisticPixels(nn.Module):
    """Decoder output (N, C, H, W) → logistic law of that location, on the 256 grey values from −1 to 1; scale learnt.

    The location is not bounded: beyond the outermost grey values, which black and white pixels are, it makes them
    certain. The scale is about a tenth of the range at first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-1.5))

    @property
    def scale(self) -> Tensor:
        """s, a scalar."""
        return self.log_scale.exp()

    def forward(self, output: Tensor) -> Likelihood:
        return DiscretisedLogistic(output, self.log_scale)


Pixels = Literal["auto", "bernoulli", "gaussian", "gaussian_channels", "logistic"]
DataLikelihood = Literal["bernoulli", "gaussian", "gaussian_unbounded"]
LIKELIHOODS = {  # of data, and pixels that suit them; the first by default
    "bernoulli": ("bernoulli",),
    "gaussian": ("gaussian", "gaussian_channels", "logistic"),
    "gaussian_unbounded": ("gaussian", "gaussian_channels"),
}


def check_image_data(
    image_shape: tuple[int, int, int] | None, likelihood: str | None
) -> tuple[tuple[int, int, int], str]:
    """What a model of images takes from the data module; a UserError if it has none, or its likelihood is unknown."""
    if image_shape is None or likelihood is None:
        missing = "image_shape" if image_shape is None else "likelihood"
        raise UserError(
            f"the data module has no attribute '{missing}', which a model of images takes from it; use one of the "
            "image data modules, or define image_shape (C, H, W) and likelihood (bernoulli or gaussian) in yours."
        )
    if likelihood not in LIKELIHOODS:
        raise UserError(f"the data module's likelihood is '{likelihood}'; it must be one of {', '.join(LIKELIHOODS)}.")
    return image_shape, likelihood


class ImageGenerator(PriorModel):
    """p_θ(z) = prior, p_θ(x|z) = pixels(decoder(z)); the generative part that every method on images shares.

    Where the prior has a component beside real numbers, as a mixture's, the decoder takes the real numbers alone.

    Args:
        image_shape: (C, H, W), from the data module.
        likelihood: of the pixels, from the data module: "bernoulli" for {0, 1}, "gaussian" for [-1, 1],
            "gaussian_unbounded" for numbers without bounds.
        latent_dim: dimension of z.
        decoder: builds the decoder from ``latent_dim`` and ``image_shape``.
        noise_floor: least σ of Gaussian pixels.
        prior: builds the prior over ``latent_dim`` numbers.
        pixels: "auto" for the data's likelihood; "gaussian_channels" for a noise scale of each colour; "logistic" for
            images in 256 levels, whose plug-in estimate takes every pair of sleep samples and images.

    Raises:
        UserError: image shape or likelihood are missing or unknown, or a number makes no sense.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None,
        likelihood: str | None,
        latent_dim: int = 16,
        decoder: Decoder = DCGANDecoder,
        noise_floor: float = 0.0,
        prior: PriorBuilder = StandardNormal,
        pixels: Pixels = "auto",
    ) -> None:
        image_shape, likelihood = check_image_data(image_shape, likelihood)
        kind = LIKELIHOODS[likelihood][0] if pixels == "auto" else pixels
        if kind not in LIKELIHOODS[likelihood]:
            raise UserError(
                f"model.pixels is '{pixels}', but the data's likelihood is '{likelihood}'; choose one of auto, "
                f"{', '.join(LIKELIHOODS[likelihood])}, or other data."
            )
        if latent_dim < 1:
            raise UserError(f"model.latent_dim is {latent_dim}; give at least 1.")
        if not 0 <= noise_floor < 1:
            raise UserError(
                f"model.noise_floor is {noise_floor}; give at least 0, and less than 1 for pixels in [-1, 1]."
            )
        super().__init__(prior_over(prior, latent_dim))
        self.latent_dim = latent_dim
        self.decoder = decoder(latent_dim, tuple(image_shape))
        self.pixels: nn.Module
        bounded = likelihood == "gaussian"
        if kind == "bernoulli":
            self.pixels = BernoulliPixels()
        elif kind == "gaussian_channels":
            self.pixels = ChannelGaussianPixels(image_shape[0], noise_floor, bounded)
        else:
            self.pixels = GaussianPixels(noise_floor, bounded) if kind == "gaussian" else LogisticPixels()

    def watched(self) -> dict[str, Tensor]:
        if isinstance(self.pixels, ChannelGaussianPixels):
            return {f"noise_scale_{channel}": scale for channel, scale in enumerate(self.pixels.scale.flatten())}
        return {"noise_scale": self.pixels.scale} if isinstance(self.pixels, GaussianPixels | LogisticPixels) else {}

    def likelihood(self, z: Tensor) -> Likelihood:
        # Back to the dtype of z where autocast lowered it: likelihoods of 1 000 pixels need float32.
        values = self.prior.values(z)
        return self.pixels(self.decoder(values).to(values.dtype))


class ImageModel(AmortisedLearning):
    """A deep generative model of images trained by amortised learning.

    Args:
        latent_dim: dimension of z.
        decoder: the network from z to the image.
        learning: how it is trained.
        noise_floor: least noise scale σ of Gaussian pixels in [−1, 1]; with 0, training on grey images diverges
            sooner or later. Binary pixels have none.
        prior: over z, of those that take a ``dim``: standard normal, Laplace, uniform, binary,
            mixture of Gaussians, flow.
        pixels: "auto" for the data's likelihood, or one that suits the same data.
        image_shape: (C, H, W); comes from the data module.
        likelihood: as :class:`ImageGenerator` takes it; comes from the data module.
    """

    def __init__(
        self,
        latent_dim: int = 16,
        decoder: Decoder = DCGANDecoder,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        noise_floor: float = 0.3,
        prior: PriorBuilder = StandardNormal,
        pixels: Pixels = "auto",
        image_shape: tuple[int, int, int] | None = None,
        likelihood: DataLikelihood | None = None,
    ) -> None:
        generative = ImageGenerator(image_shape, likelihood, latent_dim, decoder, noise_floor, prior, pixels)
        super().__init__(generative, learning)
        self.save_hyperparameters()
