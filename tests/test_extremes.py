"""Data and settings at the edge of sense: the run trains, or ends in a sentence that says why not."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Images, image_model, named, trainer

from lightning_alws.baselines import WGANGP, ImageVAE
from lightning_alws.kernels import GaussianKernel, MedianKernel
from lightning_alws.networks import MLPCritic, MLPDecoder, MLPFeatures
from lightning_alws.objectives import NaturalParameterError
from lightning_alws.regression import KernelRidge

LEARNING: dict[str, dict[str, Any]] = {
    "AL-F": {},
    "AL-C": {"kernel_objective": NaturalParameterError(), "centring": 1.0, "averaging": 0.9},
    "median": {"regression": functools.partial(KernelRidge, kernel=MedianKernel)},
}


def images(likelihood: str, train: torch.Tensor) -> Images:
    """A data module of given training images; the same for validation and test."""
    return Images(likelihood, splits=dict.fromkeys(("train", "val", "test"), train))


def data(kind: str, likelihood: str) -> Images:
    black = 0.0 if likelihood == "bernoulli" else -1.0
    drawn = Images(likelihood).images("train")
    return images(
        likelihood,
        {
            "constant": torch.full((16, 1, 8, 8), black),
            "white": torch.ones(16, 1, 8, 8),
            "duplicated": drawn[:1].repeat(16, 1, 1, 1),
            "single": drawn[:1],
        }[kind],
    )


def moved_and_finite(folder: Path, module: Any, data: Images) -> None:
    before = named(module)
    trainer(folder, max_steps=30, max_epochs=-1, limit_val_batches=0).fit(module, datamodule=data)
    after = named(module)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(value, before[key]) for key, value in after.items())
    assert module.skipped_total == 0


def wgan_gp(likelihood: str = "bernoulli", latent_dim: int = 2) -> WGANGP:
    critic, decoder = functools.partial(MLPCritic, hidden=[8]), functools.partial(MLPDecoder, hidden=[6])
    return WGANGP(critic, latent_dim=latent_dim, decoder=decoder, image_shape=(1, 8, 8), likelihood=likelihood)  # type: ignore[arg-type]


@pytest.mark.parametrize("likelihood", ["bernoulli", pytest.param("gaussian", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind",
    [
        "constant",
        pytest.param("white", marks=pytest.mark.slow),
        pytest.param("duplicated", marks=pytest.mark.slow),
        "single",
    ],
)
@pytest.mark.parametrize("method", [*LEARNING, "VAE", pytest.param("WGAN-GP", marks=pytest.mark.slow)])
def test_poor_data(tmp_path: Path, method: str, kind: str, likelihood: str) -> None:
    """A fast learning rate drives the model to the only image there is."""
    if method == "VAE":
        decoder = functools.partial(MLPDecoder, hidden=[6])
        module: Any = ImageVAE(
            MLPFeatures, latent_dim=2, decoder=decoder, learning_rate=0.05, image_shape=(1, 8, 8), likelihood=likelihood
        )
    elif method == "WGAN-GP":
        module = wgan_gp(likelihood)
    else:
        module = image_model(likelihood, learning_rate=0.05, **LEARNING[method])
    moved_and_finite(tmp_path, module, data(kind, likelihood))


@pytest.mark.filterwarnings("ignore:the Gram matrix of 20 sleep samples is singular")
@pytest.mark.parametrize("method", ["AL-F", "AL-C"])
@pytest.mark.parametrize("ridge", [1e-30, 1e-9, 1e9])
@pytest.mark.parametrize("bandwidth", [1e-6, 4.0, 1e6])
def test_extreme_ridge_and_bandwidth(tmp_path: Path, method: str, ridge: float, bandwidth: float) -> None:
    """A Gram matrix of ones, or the identity, with next to no ridge, or an enormous one."""
    kernel = functools.partial(GaussianKernel, bandwidth=bandwidth)
    regression = functools.partial(KernelRidge, kernel=kernel, ridge=ridge)
    module = image_model(**{**LEARNING[method], "regression": regression})
    run = trainer(tmp_path, max_steps=10, max_epochs=-1, limit_val_batches=0)
    run.fit(module, datamodule=Images())
    assert all(torch.isfinite(value).all() for value in named(module).values())


ONE = {
    "AL-F": lambda: image_model(latent_dim=1),
    "AL-C": lambda: image_model(latent_dim=1, **LEARNING["AL-C"]),
    "VAE": lambda: ImageVAE(
        MLPFeatures, latent_dim=1, decoder=MLPDecoder, image_shape=(1, 8, 8), likelihood="bernoulli", averaging=0.9
    ),
    "WGAN-GP": lambda: wgan_gp(latent_dim=1),
}


@pytest.mark.parametrize(
    "method", [name if name == "AL-C" else pytest.param(name, marks=pytest.mark.slow) for name in ONE]
)
def test_a_single_latent(tmp_path: Path, method: str) -> None:
    moved_and_finite(tmp_path, ONE[method](), Images())
