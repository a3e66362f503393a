"""Errors of the reconstructions against a loop, baselines against scikit-learn's own, and the files of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from runs import FIXED, Images, image_model, trainer
from sklearn.decomposition import PCA

from callbacks import Denoising, ResultsFile
from callbacks.denoising import cross_entropy, flip, squared_error
from lightning_alws.baselines import LogisticNormalVAE
from lightning_alws.errors import UserError
from lightning_alws.learning import Learning
from lightning_alws.models import MatrixFactorisation
from lightning_alws.noise import mix_seed

SETTINGS: dict[str, Any] = {"image_shape": (1, 8, 8), "likelihood": "bernoulli"}


def factorisation(factors: int = 3) -> MatrixFactorisation:
    learning = Learning(sleep_samples=40, held_out=10, regression=FIXED)
    return MatrixFactorisation(factors, (0.1, 1.0), -1.0, learning, **SETTINGS)


MODELS = {
    "amortised learning": factorisation,
    "variational": lambda: LogisticNormalVAE(3, (0.1, 1.0), -1.0, [5], **SETTINGS),
}


def figure() -> Denoising:
    return Denoising(noise=0.2, sleep_samples=60, components=4, val_images=5, test_images=6)


def test_flips_are_as_frequent_as_stated_and_the_same_each_time() -> None:
    images = torch.rand(100, 1, 8, 8).round()
    noisy = flip(images, 0.1, 3)
    assert set(noisy.unique().tolist()) == {0.0, 1.0}
    assert float((noisy != images).float().mean()) == pytest.approx(0.1, abs=0.015)
    assert torch.equal(noisy, flip(images, 0.1, 3))
    assert not torch.equal(noisy, flip(images, 0.1, 4))


def test_errors_of_one_image() -> None:
    clean = torch.tensor([[[[1.0, 0.0]]]])
    estimate = torch.tensor([[[[0.8, 0.4]]]])
    assert squared_error(estimate, clean) == pytest.approx((0.04 + 0.16) / 2)
    assert cross_entropy(estimate, clean) == pytest.approx(-math.log(0.8) - math.log(0.6))


@pytest.mark.parametrize("method", [pytest.param("amortised learning", marks=pytest.mark.slow), "variational"])
@pytest.mark.slow
def test_a_run_logs_numbers_and_draws(tmp_path: Path, method: str) -> None:
    module, data, callback = MODELS[method](), Images(), figure()
    trainer(tmp_path, [callback, ResultsFile()]).fit(module, datamodule=data)
    (tested,) = trainer(tmp_path, [callback, ResultsFile()]).test(module, datamodule=data, verbose=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["provenance"]["denoising"] == {
        "flip_probability": 0.2,
        "sleep_samples": 60,
        "images": {"val": 5, "test": 6},
        "pca_components": 4,
    }
    names = {name.split("/")[1] for name in results["metrics"] if name.startswith("val/")}
    assert {"reconstruction_error", "denoising_error", "hoyer", "spread", "active_factors"} <= names
    clean = data.images("test")[:6]
    noisy = flip(clean, 0.2, mix_seed("denoising", "test"))
    train = data.images("train")
    assert tested["test/noisy_error"] == pytest.approx(float((noisy != clean).float().mean()))
    assert tested["test/mean_image_error"] == pytest.approx(float((train.mean(0) - clean).square().mean()))
    pca = PCA(4).fit(train.flatten(1))
    for name, x in (("reconstruction", clean), ("denoising", noisy)):
        projected = torch.from_numpy(pca.inverse_transform(pca.transform(x.flatten(1)))).clamp(0, 1).view_as(clean)
        assert tested[f"test/pca_{name}_error"] == pytest.approx(float((projected - clean).square().mean()), rel=1e-3)
    arguments = {"sleep_samples": 60} if method == "amortised learning" else {}
    module.trainer = None
    if not arguments:  # draws of the posterior differ with the seed, but not its mean
        decoded = module.reconstruct(noisy).mean_at_expectation
        assert tested["test/denoising_error_decoded"] == pytest.approx(squared_error(decoded, clean))
    assert ("test/known_noise_error" in tested) == bool(arguments)
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {"step_000004.png", "test.png"}


def test_averaged_weights_are_measured() -> None:
    module = MatrixFactorisation(3, learning=Learning(20, 10, FIXED, averaging=0.9), **SETTINGS)
    with torch.no_grad():
        module.generative.log_weight.zero_()
    numbers = figure().measure(module, Images(), "val")
    assert numbers["hoyer"] > 1e-3  # that of the initial weights, not of those all alike
    assert numbers["active_factors"] == 3


def test_other_models_and_senseless_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Denoising.*ImageModel"):
        trainer(tmp_path, [figure()]).fit(image_model(), datamodule=Images())
    for settings in ({"noise": 0.0}, {"noise": 0.5}, {"sleep_samples": 1}, {"components": 0}, {"test_images": 0}):
        with pytest.raises(UserError, match=f"Denoising.{next(iter(settings))} is"):
            Denoising(**settings)  # type: ignore[arg-type]
    assert issubclass(Denoising, pl.Callback)
