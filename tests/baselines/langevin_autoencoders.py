"""Small Langevin autoencoders for the tests: of images, and of one latent whose posterior a grid gives."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from models import Curve
from torch import Tensor

from lightning_alws.baselines import LangevinAutoencoder
from lightning_alws.networks import MLPDecoder, MLPFeatures

# f and σ of p(x|z) = N(f(z), σ²), three observations: posteriors that are Gaussian, skewed, and of two modes
POSTERIORS: dict[str, tuple[Callable[[Tensor], Tensor], float, list[float]]] = {
    "conjugate": (lambda z: 1.5 * z, 0.8, [-1.0, 0.5, 2.0]),
    "non-linear": (lambda z: z.exp(), 0.7, [0.2, 1.0, 2.5]),
    "mixture": (lambda z: 0.8 * z.square() + 0.3 * z, 0.6, [0.1, 1.0, 1.6]),
}


def autoencoder(**settings) -> LangevinAutoencoder:
    settings = {"latent_dim": 2, "image_shape": (1, 8, 8), "likelihood": "bernoulli", "step_size": 0.01} | settings
    module = LangevinAutoencoder(
        decoder=functools.partial(MLPDecoder, hidden=[6]), encoder=functools.partial(MLPFeatures, width=8), **settings
    )
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    return module


def scalar(name: str, **settings) -> tuple[LangevinAutoencoder, Tensor]:
    """One latent, with the model of that name as its generative part; three observations (3, 1)."""
    curve, scale, observations = POSTERIORS[name]
    torch.manual_seed(0)
    module = autoencoder(latent_dim=1, image_shape=(1, 1, 1), **settings)
    module.generative = Curve(curve, scale)  # type: ignore[assignment]
    return module, torch.tensor(observations, dtype=torch.float64)[:, None]


def shared(count: int, width: int) -> Tensor:
    """Features of one large mean, as those after a ReLU are."""
    return 10 + torch.randn(count, width, dtype=torch.float64)
