"""Images as a Gaussian scale mixture of their principal components: each image has a spectrum of its own.

    x = m + Σ_b e^{g_b} V_b diag(s_b) ε_b + e^{g_rest} s_rest (I − VVᵀ) ε,   g = limit · tanh(B z / limit),  z ~ p_θ(z)

V are the leading principal components of training images, in bands of ever more of them, as octaves are of frequencies;
the columns of B are Legendre polynomials in the number of the band, so that z are the amplitude of an image's spectrum,
its slope, its bend and so on. Given z an image is Gaussian, and contrasts vary widely between images. The scales s, and
how much contrasts vary, are learnt; m and V are not.

Sources: Wainwright and Simoncelli, "Scale mixtures of Gaussians and the statistics of natural images", NIPS 1999; van
der Schaaf and van Hateren, "Modelling the power spectra of natural images", Vision Research 36, 1996: amplitude and
slope of the spectrum vary from image to image. That the spread of contrasts is in the prior, and not in B, matters
here: its gradient is then E[∇_θ log p_θ(z)|x], and not the small difference of large numbers that ∇_B log p(x|z) is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.kernels import ModelFeatures
from lightning_alws.learning import INITIAL_SAMPLES, AmortisedLearning, Learning
from lightning_alws.likelihoods import SpectralGaussian
from lightning_alws.models.image import DataLikelihood, check_image_data
from lightning_alws.models.prior_model import PriorModel, prior_over
from lightning_alws.noise import seeded
from lightning_alws.priors import GaussianMixturePrior, PriorBuilder

START_IMAGES = 5000  # from which mean and components are taken
START_SCALE = 1.2  # of every s at first, over the largest standard deviation of these images: white noise
LEAST_ENERGY = 1e-2  # of a band, over its mean, below which features do not tell apart
WATCHED_DRAWS = 2000


def band_edges(components: int, bands: int) -> list[int]:
    """Where bands of components end: in equal ratios as far as whole numbers can, the last one at ``components``."""
    edges = [0]
    for number in range(1, bands + 1):
        wanted = max(edges[-1] + 1, round(components ** (number / bands)))
        edges.append(min(wanted, components - bands + number))
    return edges[1:]


def principal_components(images: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), leading directions (D, count) and standard deviations (count,) of images (n, D), count < min(n, D).

    The largest entry of each direction is positive, for eigenvectors have no sign.
    """
    mean = images.mean(0)
    centred = (images - mean) / (len(images) - 1) ** 0.5
    # By the smaller of the two matrices of products, which have the same eigenvalues.
    few = len(images) < images.shape[1]
    values, vectors = torch.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    values, vectors = values[-count:].flip(0).clamp_min(0), vectors[:, -count:].flip(1)
    # Images that are alike may have fewer directions than asked for; of the others QR makes any orthonormal ones.
    directions, triangle = torch.linalg.qr(centred.T @ vectors if few else vectors)
    directions = directions * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return mean, directions * torch.where(largest < 0, -1.0, 1.0), values.sqrt()


class ScaleMixture(PriorModel):
    """The generative part. Until :meth:`start_from` its components are the first pixels.

    Args:
        image_shape: (C, H, W), from the data module.
        likelihood: of the data: "gaussian" or "gaussian_unbounded".
        components: k.
        bands: of components; all directions beyond the components are one more.
        contrasts: latents: 1 for the amplitude of the spectrum, 2 for its slope, 3 for its bend and so on.
        limit: of a band's log contrast, to either side.
        prior: builds the prior over the contrasts; None for a single Gaussian, of standard deviation 0.3 at first.
        scale_rate: r, where log s = r times the parameter: each of Adam's steps moves log s by r times the learning
            rate. The scales have some nats to go, and the prior's covariance, which has the learning rate itself, some
            tenths.

    Raises:
        UserError: the data are binary, or a number makes no sense.
    """

    centre: Tensor
    directions: Tensor
    band: Tensor
    polynomials: Tensor
    begun: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int] | None,
        likelihood: str | None,
        components: int = 512,
        bands: int = 9,
        contrasts: int = 2,
        limit: float = 1.5,
        prior: PriorBuilder | None = None,
        scale_rate: float = 2.5,
    ) -> None:
        shape, likelihood = check_image_data(image_shape, likelihood)
        size = math.prod(shape)
        if likelihood == "bernoulli":
            raise UserError(
                "the data module's likelihood is 'bernoulli', but a Gaussian scale mixture makes real numbers; choose "
                "images in grey levels or colours (Digits with --data.binarize false), or another model."
            )
        check_at_least("model", components=(components, 1), bands=(bands, 1), contrasts=(contrasts, 1))
        if components >= size:
            raise UserError(
                f"model.components is {components}, but an image has {size} numbers, of which there must be more; give "
                f"at most {size - 1}."
            )
        if bands > components:
            raise UserError(f"model.bands is {bands}, for model.components {components}; give at most as many.")
        if contrasts > bands + 1:
            raise UserError(
                f"model.contrasts is {contrasts}, but over {bands} bands and the rest there are but {bands + 1} "
                f"independent polynomials; give at most {bands + 1}, or more model.bands."
            )
        for name, value in (("limit", limit), ("scale_rate", scale_rate)):
            if not 0 < value < math.inf:
                raise UserError(f"model.{name} is {value}; give a positive number.")
        super().__init__(GaussianMixturePrior(1, contrasts, 0.0) if prior is None else prior_over(prior, contrasts))
        self.limit, self.scale_rate = limit, scale_rate
        self.scale_exponent = nn.Parameter(torch.zeros(components + 1))
        edges = torch.tensor(band_edges(components, bands))
        self.register_buffer("band", torch.bucketize(torch.arange(components + 1), edges, right=True))
        places = np.linspace(-1, 1, bands + 1)
        polynomials = np.polynomial.legendre.legvander(places, contrasts - 1)
        self.register_buffer("polynomials", torch.tensor(polynomials, dtype=torch.get_default_dtype()))
        self.register_buffer("centre", torch.zeros(shape))
        self.register_buffer("directions", torch.eye(size, components))
        self.register_buffer("begun", torch.tensor(False))

    @torch.no_grad()
    def start_from(self, images: Tensor) -> None:
        """Take m and V from images (n, C, H, W), and make white noise of 1.2 times their largest standard deviation.

        Raises:
            UserError: there are not more images than components.
        """
        components = self.directions.shape[1]
        if len(images) <= components:
            raise UserError(
                f"model.components is {components}, but they are taken from {len(images)} training images; give at "
                f"most {len(images) - 1}."
            )
        mean, directions, deviations = principal_components(images.flatten(1).double().cpu(), components)
        self.centre.copy_(mean.view(self.centre.shape))
        self.directions.copy_(directions)
        least = torch.finfo(torch.float32).eps  # of images that are all alike
        self.scale_exponent.fill_(math.log(START_SCALE * max(float(deviations[0]), least)) / self.scale_rate)
        self.begun.fill_(True)

    @property
    def log_scale(self) -> Tensor:
        """log s of the components and, last, of the rest, shape (components + 1,)."""
        return self.scale_rate * self.scale_exponent

    def log_contrast(self, z: Tensor) -> Tensor:
        """g of each band and, last, of the rest for latents z (N, ...), shape (N, bands + 1)."""
        return (self.prior.values(z) @ self.polynomials.T).div(self.limit).tanh() * self.limit

    def likelihood(self, z: Tensor) -> SpectralGaussian:
        return self.law(self.log_contrast(z))

    def law(self, log_contrast: Tensor) -> SpectralGaussian:
        """p(x|g) for log contrasts (N, bands + 1)."""
        return SpectralGaussian(log_contrast, self.log_scale, self.band, self.centre, self.directions)

    def energies(self, x: Tensor) -> Tensor:
        """Mean of c_j²/s_j² over each band for images x (N, C, H, W), shape (N, bands + 1); e^{2g_b} on average."""
        flat = self.law(self.log_scale.new_zeros(1, len(self.polynomials)))
        return flat.sufficient_statistics(x) / flat.sizes

    @torch.no_grad()
    def watched(self) -> dict[str, Tensor]:
        """Spread of the log contrast in the first, middle and last band; root mean square of x − m, all by draws of z.

        The draws have a seed of their own.
        """
        with seeded(self.centre.device, "watched"):
            log_contrast = self.log_contrast(self.prior.sample(WATCHED_DRAWS))
        spread = log_contrast.std(0)
        flat = self.law(log_contrast)
        variance = (2 * (self.log_scale + (2 * log_contrast).exp().mean(0).log()[self.band] / 2)).exp()
        multiplicity = torch.ones_like(variance)
        multiplicity[-1] = len(flat.directions) - flat.directions.shape[1]
        return {
            "log_contrast_first": spread[0],
            "log_contrast_middle": spread[len(spread) // 2],
            "log_contrast_last": spread[-1],
            "deviation": ((multiplicity * variance).sum() / multiplicity.sum()).sqrt(),
        }


class BandEnergies(ModelFeatures):
    """x → log(1/n_b Σ_{j in b} c_j²/s_j² + 0.01), one number for each band, s as the model stands in training.

    They are sufficient for z, and of the same law whatever the scales are: where z were known, each had the mean 2 g_b
    and a variance of about 2/n_b. A kernel that standardises them, such as
    :class:`~lightning_alws.quantile_kernel.QuantileKernel`, makes bands of few components and of many count alike.

    Args:
        event_shape: (C, H, W).
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()

    def attach(self, model: nn.Module) -> None:
        if not isinstance(model, ScaleMixture):
            raise UserError(
                f"BandEnergies are the features of a ScaleMixture, but the model is a {type(model).__name__}; take "
                "others, such as LinearFeatures."
            )
        super().attach(model)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Log energies (N, bands + 1) of images (N, C, H, W)."""
        model: Any = self.model
        return (model.energies(x) + LEAST_ENERGY).log()


class ScaleMixtureModel(AmortisedLearning):
    """A Gaussian scale mixture of images, trained by amortised learning from white noise on.

    Before a run's first step, mean and components are taken from at most 5 000 training images, spread evenly over the
    data's order and so the same in all processes. They are kept with the weights.

    Args:
        components: principal components whose scales are learnt one by one; fewer than an image has numbers, and than
            there are training images.
        bands: of components that vary in contrast together; the directions beyond the components are one more.
        contrasts: latents: amplitude, slope, bend and so on of the log contrast over the bands.
        limit: of a band's log contrast, to either side.
        prior: over the contrasts, of those that take a ``dim``; null for a single Gaussian.
        scale_rate: how many times faster than the prior the log scales are learnt.
        learning: how it is trained; the kernel's features should be :class:`BandEnergies`.
        image_shape: (C, H, W); comes from the data module.
        likelihood: "gaussian" or "gaussian_unbounded"; comes from the data module.
    """

    def __init__(
        self,
        components: int = 512,
        bands: int = 9,
        contrasts: int = 2,
        limit: float = 1.5,
        prior: PriorBuilder | None = None,
        scale_rate: float = 2.5,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        image_shape: tuple[int, int, int] | None = None,
        likelihood: DataLikelihood | None = None,
    ) -> None:
        generative = ScaleMixture(image_shape, likelihood, components, bands, contrasts, limit, prior, scale_rate)
        super().__init__(generative, learning)
        self.save_hyperparameters()

    def on_fit_start(self) -> None:
        """Take mean and components from the training images, unless they came with a checkpoint, loaded before this."""
        super().on_fit_start()
        model: Any = self.generative
        if bool(model.begun):
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "images"):
            raise UserError(
                f"ScaleMixtureModel begins at the principal components of training images, but {type(data).__name__} "
                "has none to look at; use one of the image data modules, or define images(split) in yours."
            )
        count = data.sizes["train"] if hasattr(data, "sizes") else len(data.images("train"))
        rows = torch.linspace(0, count - 1, min(count, START_IMAGES), dtype=torch.float64).long()
        model.start_from(data.images("train", rows) if hasattr(data, "sizes") else data.images("train")[rows])
        if self.averaged is not None:
            self.averaged.module.load_state_dict(model.state_dict())
        with torch.no_grad():
            self.regression.initialise(self.draw(INITIAL_SAMPLES, "initialise", 0).x)
