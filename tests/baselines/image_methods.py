"""Every competing method on images, small: a new one is added here and inherits the tests of all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_alws.baselines import (
    DLGM,
    IWAE,
    SIVI,
    WGANGP,
    ImageVAE,
    LangevinAutoencoder,
    NetworkLearning,
    ParticleLearning,
    PlanarFlowVAE,
    ReweightedWakeSleep,
    SylvesterVAE,
)
from lightning_alws.baselines.image import ImageMethod
from lightning_alws.models.image import ImageGenerator
from lightning_alws.networks import MLPCritic, MLPDecoder, MLPFeatures
from lightning_alws.priors import BernoulliPrior

SHAPE = (1, 2, 3)  # six pixels: few enough for every image to be enumerated
ENCODER = functools.partial(MLPFeatures, hidden=[], width=8)
CRITIC = functools.partial(MLPCritic, hidden=[8])
SMALL: dict[str, Any] = {
    "latent_dim": 2,
    "decoder": functools.partial(MLPDecoder, hidden=[6]),
    "image_shape": SHAPE,
    "likelihood": "bernoulli",
}

METHODS: dict[str, Callable[..., ImageMethod]] = {
    "vae": functools.partial(ImageVAE, encoder=ENCODER, **SMALL),
    "vae, laplace": functools.partial(ImageVAE, encoder=ENCODER, posterior="laplace", **SMALL),
    "iwae": functools.partial(IWAE, encoder=ENCODER, samples=5, **SMALL),
    "al_p": functools.partial(ParticleLearning, encoder=ENCODER, sleep_samples=20, particles=2, hidden=8, **SMALL),
    "al_nn": functools.partial(NetworkLearning, encoder=ENCODER, sleep_samples=20, inner_steps=2, **SMALL),
    "rws": functools.partial(ReweightedWakeSleep, encoder=ENCODER, samples=5, **SMALL),
    "rws, binary": functools.partial(ReweightedWakeSleep, encoder=ENCODER, samples=5, prior=BernoulliPrior, **SMALL),
    "wgan_gp": functools.partial(WGANGP, critic=CRITIC, **SMALL),
    "flow vae, orthogonal": functools.partial(SylvesterVAE, encoder=ENCODER, columns=1, **SMALL),
    "flow vae, householder": functools.partial(
        SylvesterVAE, encoder=ENCODER, flow="householder", flows=2, samples=3, warm_up=10, **SMALL
    ),
    "flow vae, triangular": functools.partial(SylvesterVAE, encoder=ENCODER, flow="triangular", **SMALL),
    "flow vae, planar": functools.partial(SylvesterVAE, encoder=ENCODER, flow="planar", **SMALL),
    "flow vae, not amortised": functools.partial(PlanarFlowVAE, encoder=ENCODER, **SMALL),
    "sivi": functools.partial(SIVI, encoder=ENCODER, mixture=3, noise=[4, 3], hidden=[6], **SMALL),
    "dlgm": functools.partial(DLGM, encoder=ENCODER, **SMALL),
    "dlgm, tested": functools.partial(DLGM, encoder=ENCODER, moves=1, metropolis=True, **SMALL),
    # A posterior as wide as the true ones: the published 0.05 would need far more samples than a test has.
    "lae": functools.partial(LangevinAutoencoder, encoder=ENCODER, step_size=0.01, posterior_scale=1.2, **SMALL),
    "lae, damped": functools.partial(
        LangevinAutoencoder,
        encoder=ENCODER,
        step_size=0.01,
        acceptance=0.57,
        damping=0.1,
        encoder_learning_rate=1e-3,
        posterior_scale=None,
        **SMALL,
    ),
    "lae, untested": functools.partial(
        LangevinAutoencoder, encoder=ENCODER, step_size=0.01, metropolis=False, posterior_scale=1.2, **SMALL
    ),
}
WITH_ENCODER = [name for name in METHODS if hasattr(METHODS[name].func, "log_weights")]  # type: ignore[attr-defined]


def built(name: str, **settings: Any) -> ImageMethod:
    """A method in float64, of its own seed, that logs nothing."""
    torch.manual_seed(0)
    module = METHODS[name](**settings).double()
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    return module


def images(count: int) -> Tensor:
    """Random binary images (count, 1, 2, 3), float64."""
    return torch.rand(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).round()


def log_marginal(model: ImageGenerator, x: Tensor, points: int = 121, limit: float = 7.0) -> Tensor:
    """log p_θ(x_b) of a model with two latents, by the trapezium rule, or binary ones, by enumeration, shape (B,)."""
    if isinstance(model.prior, BernoulliPrior):
        z, log_volume = torch.cartesian_prod(*[torch.arange(2.0).double()] * model.latent_dim), 0.0
    else:
        line = torch.linspace(-limit, limit, points, dtype=torch.float64)
        z = torch.cartesian_prod(line, line)
        log_volume = 2 * float((line[1] - line[0]).log())
    likelihood = model.likelihood(z)
    log_prob = torch.stack([likelihood.log_prob(one.expand(len(z), *one.shape)) for one in x])
    return (log_prob + model.log_prior(z)).logsumexp(1) + log_volume
