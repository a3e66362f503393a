"""What competing methods share on images: the generative part of amortised learning's image models, and an encoder.

The arguments ``latent_dim``, ``decoder``, ``noise_floor`` and ``prior`` mean what they mean for ``ImageModel``, so that
one command line serves every method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_alws.baselines.lower_bound import LowerBoundMethod
from lightning_alws.errors import UserError
from lightning_alws.models.image import DataLikelihood, ImageGenerator, Pixels
from lightning_alws.module import LatentVariableModule
from lightning_alws.networks import ConvFeatures, DCGANDecoder, Decoder
from lightning_alws.priors import Prior, PriorBuilder, StandardNormal

EncoderBuilder = Callable[[tuple[int, ...]], nn.Module]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamax": functools.partial(torch.optim.Adamax, eps=1e-7),  # as published for Sylvester flows
    "sgd": torch.optim.SGD,
}


class ImageMethod(LatentVariableModule):
    """A deep generative model of images, learnt in another way than by amortised learning.

    Args:
        latent_dim: dimension of z.
        decoder: the network from z to the image.
        noise_floor: least noise scale of Gaussian pixels in [−1, 1]; by default that of amortised learning, so that
            methods are compared on the same class of models. Others than amortised learning do without (0).
        prior: over z.
        learning_rate: the optimiser's.
        averaging: decay of the averaged weights used for evaluation; 0 for none.
        pixels: "auto" for the data's likelihood, or one that suits the same data.
        optimizer: Adam, Adamax (with ε = 1e-7), or plain stochastic gradient descent.
        image_shape: (C, H, W); comes from the data module.
        likelihood: of the data, as ``ImageModel`` takes it; comes from the data module.

    Raises:
        UserError: the data module lacks one of the last two, or a number makes no sense.
    """

    generative: ImageGenerator

    def __init__(
        self,
        latent_dim: int = 16,
        decoder: Decoder = DCGANDecoder,
        noise_floor: float = 0.3,
        prior: PriorBuilder = StandardNormal,
        learning_rate: float = 1e-3,
        averaging: float = 0.0,
        pixels: Pixels = "auto",
        optimizer: Literal["adam", "adamax", "sgd"] = "adam",
        image_shape: tuple[int, int, int] | None = None,
        likelihood: DataLikelihood | None = None,
    ) -> None:
        if not learning_rate > 0:
            raise UserError(f"model.learning_rate is {learning_rate}; give a positive number, such as 0.001.")
        if optimizer not in OPTIMIZERS:
            raise UserError(f"model.optimizer is {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}.")
        generative = ImageGenerator(image_shape, likelihood, latent_dim, decoder, noise_floor, prior, pixels)
        super().__init__(generative, averaging)
        self.image_shape = tuple(image_shape or ())
        self.latent_dim, self.learning_rate, self.optimizer = latent_dim, learning_rate, OPTIMIZERS[optimizer]
        self.save_hyperparameters()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One group for the model and one for all that helps to learn it."""
        model = [*self.generative.parameters()]
        known = {id(parameter) for parameter in model}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": model, "name": "model"}, {"params": others, "name": "encoder"}]
        return self.optimizer([group for group in groups if group["params"]], lr=self.learning_rate)


class ImageEncoderMethod(ImageMethod, LowerBoundMethod):
    """An :class:`ImageMethod` with an encoder: features h(x), from which a method's own layers read q(z|x).

    Args:
        encoder: builds the network from images to a vector of features.
        settings: those of :class:`ImageMethod`.

    Raises:
        UserError: as there, and for a prior that :meth:`check_prior` refuses.
    """

    def __init__(self, encoder: EncoderBuilder = ConvFeatures, **settings: Any) -> None:
        super().__init__(**settings)
        self.check_prior(self.generative.prior)
        self.encoder = nn.Sequential(encoder(self.image_shape), nn.ReLU())
        with torch.no_grad():
            self.feature_width = self.encoder(torch.zeros(1, *self.image_shape)).shape[1]

    def check_prior(self, prior: Prior) -> None:
        """Raise a UserError for a prior over latents that the method's q(z|x) is no distribution of."""
        if not prior.real:
            raise UserError(
                f"model.prior is {type(prior).__name__}, whose latents are not real numbers alone; "
                f"{type(self).__name__} takes priors over real numbers, such as StandardNormal."
            )

    def features(self, x: Tensor) -> Tensor:
        """h(x) for images x (B, C, H, W), shape (B, feature_width)."""
        return self.encoder(x)
