"""Factors of images: uniform latents, positive weights, Bernoulli pixels.

    z_k ~ U(0, 1), k = 1 … K,   x_d|z ~ Bernoulli(m_d),   m_d = squeezed sigmoid(Σ_k W_dk logit z_k + b_d),   W > 0

Source: the matrix factorisation of kevin-w-li/al-ws (there with a Gamma prior on W, K = 100, binarised MNIST).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.learning import INITIAL_SAMPLES, AmortisedLearning, Learning
from lightning_alws.likelihoods import Likelihood, TensorMap
from lightning_alws.models.image import BernoulliPixels
from lightning_alws.models.prior_model import PriorModel
from lightning_alws.module import LatentVariableModule
from lightning_alws.priors import UniformPrior

CLAMP = 1e-5  # z is kept in [1e-5, 1 − 1e-5], so that logit z is finite (published)


class PositiveFactors(PriorModel):
    """z_k ~ U(0, 1), pixels Bernoulli of logit Σ_k W_dk logit z_k + b_d with W = exp(log W).

    Since logit z of a uniform z is standard logistic, symmetric about 0, a factor adds its pixels where z_k > ½ and
    takes them away where z_k < ½.

    Args:
        image_shape: (C, H, W), from the data module; D = C·H·W.
        likelihood: of the pixels, from the data module; must be "bernoulli".
        factors: K.
        initial_weight: bounds (low, high) of the uniform distribution that the initial log W is drawn from, given as
            bounds of W.
        initial_bias: of every pixel; None to begin at the log odds of the mean training image, see :meth:`begin_at`.

    Raises:
        UserError: image shape or likelihood are missing, the pixels are no binary ones, or a number makes no sense.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None,
        likelihood: str | None,
        factors: int = 100,
        initial_weight: tuple[float, float] = (0.01, 0.03),
        initial_bias: float | None = None,
    ) -> None:
        if image_shape is None or likelihood is None:
            missing = "image_shape" if image_shape is None else "likelihood"
            raise UserError(
                f"the data module has no attribute '{missing}', which a model of images takes from it; use one of the "
                "image data modules, such as BinarizedMNIST."
            )
        if likelihood != "bernoulli":
            raise UserError(
                f"the data module's likelihood is '{likelihood}', but the matrix factorisation is of binary pixels "
                "(bernoulli); use BinarizedMNIST, or Digits with binarize."
            )
        low, high = initial_weight
        if not 0 < low <= high < math.inf:
            raise UserError(
                f"model.initial_weight is [{low}, {high}]; give two positive numbers, the first at most the second."
            )
        super().__init__(UniformPrior(factors))
        self.image_shape = tuple(image_shape)
        pixels = math.prod(image_shape)
        self.log_weight = nn.Parameter(torch.empty(pixels, factors).uniform_(math.log(low), math.log(high)))
        self.bias = nn.Parameter(torch.full((pixels,), float(initial_bias or 0.0)))
        self.begins_at_data = initial_bias is None
        self.pixels = BernoulliPixels()

    @property
    def weight(self) -> Tensor:
        """W, shape (D, K), positive."""
        return self.log_weight.exp()

    def likelihood(self, z: Tensor) -> Likelihood:
        return self.decode(logit(z))

    def decode(self, logits: Tensor) -> Likelihood:
        """p_θ(x|z) for logit z (N, K)."""
        output = logits @ self.weight.T + self.bias
        # Back to the dtype of the latents where autocast lowered it, as for every model of images.
        return self.pixels(output.to(logits.dtype).unflatten(1, self.image_shape))

    @torch.no_grad()
    def begin_at(self, images: Tensor) -> None:
        """Set b to the log odds of the mean of images (n, C, H, W), each pixel's count with ½ added to ones and zeros.

        Source: Hinton, "A practical guide to training restricted Boltzmann machines", 2012, section 8.1.
        """
        ones = images.to(self.bias).sum(0).flatten()
        self.bias.copy_((ones + 0.5).log() - (len(images) - ones + 0.5).log())

    def watched(self) -> dict[str, Tensor]:
        return {"mean_weight": self.weight.mean(), "mean_bias": self.bias.mean()}


def logit(z: Tensor) -> Tensor:
    """logit z with z kept in [1e-5, 1 − 1e-5]."""
    return z.clamp(CLAMP, 1 - CLAMP).logit()


def begin_at_data(module: LatentVariableModule) -> bool:
    """At the first step of a run, set the bias from the training images where that was asked for; whether it was.

    Raises:
        UserError: the data module has no images to set it from.
    """
    model = module.generative
    assert isinstance(model, PositiveFactors)
    if not model.begins_at_data or module.global_step > 0:
        return False
    data: Any = getattr(module.trainer, "datamodule", None)
    if not hasattr(data, "images"):
        raise UserError(
            "model.initial_bias is left out, but the data module has no method 'images' from which it would be set; "
            "give a number, such as 0.1."
        )
    model.begin_at(data.images("train"))
    return True


@dataclass(frozen=True)
class Reconstruction:
    """Images (B, C, H, W) in [0, 1] that a posterior p(z|x) makes of observations x.

    Attributes:
        expected_mean: E[μ(z)|x], the least-squares estimate where the posterior is exact.
        mean_at_expectation: μ at E[logit z|x].
    """

    expected_mean: Tensor
    mean_at_expectation: Tensor


class MatrixFactorisation(AmortisedLearning):
    """Factors of binary images trained by amortised learning.

    Args:
        factors: K.
        initial_weight: bounds of the initial W, log-uniform between them.
        initial_bias: of every pixel (published: 0.1); None for the log odds of the mean training image. From a
            constant, pixels that are black in all data are for hundreds of steps explained by factors that turn them
            off, and which the model then also turns on.
        learning: how it is trained.
        image_shape: (C, H, W); comes from the data module.
        likelihood: must be "bernoulli"; comes from the data module.
    """

    generative: PositiveFactors

    def __init__(
        self,
        factors: int = 100,
        initial_weight: tuple[float, float] = (0.01, 0.03),
        initial_bias: float | None = None,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        image_shape: tuple[int, int, int] | None = None,
        likelihood: Literal["bernoulli", "gaussian"] | None = None,
    ) -> None:
        super().__init__(PositiveFactors(image_shape, likelihood, factors, initial_weight, initial_bias), learning)
        self.save_hyperparameters()

    def on_train_start(self) -> None:
        """Begin at the mean image, where no bias was given."""
        if begin_at_data(self):
            self.regression.initialise(self.draw(INITIAL_SAMPLES, "initial").x)
            if self.averaged is not None:
                self.averaged.module.load_state_dict(self.generative.state_dict())

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, index: int = 0, sleep_samples: int | None = None, corrupt: TensorMap | None = None
    ) -> Reconstruction:
        """Images as the amortised posterior sees them, for x (B, C, H, W).

        Args:
            index: of the noise.
            sleep_samples: N, by default as many as in training.
            corrupt: what was done to x and is therefore to be done to the sleep observations (N, C, H, W), to regress
                on corrupted ones: the weights are then those of p(z|corrupted x).

        Raises:
            UserError: the regression failed.
        """
        posterior = self.amortised_posterior(x, index, sleep_samples, corrupt)
        model: PositiveFactors = self.evaluation_model  # type: ignore[assignment]
        logits = logit(posterior.sleep.z)  # type: ignore[arg-type]  # one tensor
        # Signed weights may leave the unit interval.
        expected = posterior.expectation(model.decode(logits).mean).clamp(0, 1)
        return Reconstruction(expected, model.decode(posterior.expectation(logits)).mean)
