"""What ``predict`` writes, against the module's own amortised posterior."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import METHODS, Images, Numbers, image_model, trainer
from torch import Tensor

from callbacks.predictions import Predictions
from lightning_alws.errors import UserError
from lightning_alws.learning import Learning
from lightning_alws.models import ImageModel
from lightning_alws.networks import MLPDecoder
from lightning_alws.posterior import AmortisedPosterior
from lightning_alws.priors import GaussianMixturePrior


def load(folder: Path, name: str) -> dict[str, Tensor]:
    with np.load(folder / "predictions" / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def predict(folder: Path, model: Any, data: Any, callback: Predictions) -> None:
    trainer(folder, [callback]).predict(model, datamodule=data, return_predictions=False)


def posteriors(model: ImageModel, data: Images) -> list[tuple[Tensor, AmortisedPosterior]]:
    """The test images in the batches of the data module (4 and 3), each with its posterior."""
    batches = data.images("test").split(data.batch_size)
    return [(x, model.amortised_posterior(x, index)) for index, x in enumerate(batches)]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("method", ["AL-F", "AL-A"])
def test_posterior_is_the_modules_own(tmp_path: Path, likelihood: str, method: str) -> None:
    """E[z|x] and E[μ(z)|x] summed sample by sample, with the weights of ``amortised_posterior``."""
    model, data = image_model(likelihood, **METHODS[method]), Images(likelihood)
    predict(tmp_path, model, data, Predictions())
    arrays = load(tmp_path, "posterior")
    assert {name: tuple(value.shape) for name, value in arrays.items()} == {
        "observations": (7, 1, 8, 8),
        "latent_means": (7, 2),
        "reconstructions": (7, 1, 8, 8),
        "negative_mass": (7,),
    }
    row = 0
    for x, posterior in posteriors(model, data):
        for b in range(len(x)):
            latent, image, negative = torch.zeros(2), torch.zeros(1, 8, 8), 0.0
            for n in range(20):
                weight = float(posterior.weights[n, b])
                latent += weight * posterior.sleep.z[n]
                image += weight * posterior.sleep.joint.likelihood.mean[n].detach()  # type: ignore[attr-defined]
                negative += max(-weight, 0)
            assert torch.equal(arrays["observations"][row], x[b])
            torch.testing.assert_close(arrays["latent_means"][row], latent, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(arrays["reconstructions"][row], image, rtol=1e-4, atol=1e-5)
            assert float(arrays["negative_mass"][row]) == pytest.approx(negative, rel=1e-4, abs=1e-6)
            row += 1
    assert row == 7
    if likelihood == "bernoulli":
        assert (arrays["negative_mass"] > 0).any()


def test_simplex_replaces_the_weights_and_still_tells_of_the_raw_ones(tmp_path: Path) -> None:
    model, data = image_model(), Images()
    predict(tmp_path / "raw", model, data, Predictions())
    predict(tmp_path / "simplex", model, data, Predictions(simplex=True))
    raw, simplex = load(tmp_path / "raw", "posterior"), load(tmp_path / "simplex", "posterior")
    assert torch.equal(raw["negative_mass"], simplex["negative_mass"])
    assert not torch.equal(raw["latent_means"], simplex["latent_means"])
    parts = [(p.projected(), p) for _, p in posteriors(model, data)]
    for projected, _ in parts:
        assert (projected.weights >= 0).all()
        torch.testing.assert_close(projected.weights.sum(0), torch.ones(projected.weights.shape[1]))
    expected = torch.cat([projected.expectation(projected.sleep.z) for projected, _ in parts])
    torch.testing.assert_close(simplex["latent_means"], expected)
    # A weighted mean of Bernoulli means is one; one with signed weights need not be.
    assert (simplex["reconstructions"] >= 0).all()
    assert (simplex["reconstructions"] <= 1).all()
    assert torch.equal(load(tmp_path / "raw", "samples")["latents"], load(tmp_path / "simplex", "samples")["latents"])


def test_a_mixtures_component_is_predicted_by_its_probabilities(tmp_path: Path) -> None:
    """The mean of a component's number would mean nothing."""
    prior = functools.partial(GaussianMixturePrior, components=3)
    decoder = functools.partial(MLPDecoder, hidden=[6])
    model = ImageModel(2, decoder, Learning(30, 10), prior=prior, image_shape=(1, 8, 8), likelihood="bernoulli")
    data = Images()
    predict(tmp_path, model, data, Predictions(simplex=True))
    arrays = load(tmp_path, "posterior")
    assert "latent_means" not in arrays
    torch.testing.assert_close(arrays["latent_means_component"].sum(1), torch.ones(7))
    rows = []
    for _, posterior in posteriors(model, data):
        z, weights = posterior.sleep.z, posterior.projected().weights
        assert isinstance(z, Tensor)
        rows.append(torch.stack([weights[z[:, 0] == k].sum(0) for k in range(3)], dim=1))
    torch.testing.assert_close(arrays["latent_means_component"], torch.cat(rows))
    assert arrays["latent_means_value"].shape == (7, 2)
    assert load(tmp_path, "samples")["latents"].shape == (64, 3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_samples_and_their_means_belong_to_the_latents(tmp_path: Path, likelihood: str) -> None:
    model = image_model(likelihood)
    predict(tmp_path, model, Images(likelihood), Predictions(num_samples=500, num_observations=1))
    arrays = load(tmp_path, "samples")
    assert {name: tuple(value.shape) for name, value in arrays.items()} == {
        "samples": (500, 1, 8, 8),
        "means": (500, 1, 8, 8),
        "latents": (500, 2),
    }
    with torch.no_grad():
        expected = model.generative.likelihood(arrays["latents"])
    torch.testing.assert_close(arrays["means"], expected.mean)
    variance = expected.mean * (1 - expected.mean)
    if likelihood == "bernoulli":
        assert set(arrays["samples"].unique().tolist()) == {0.0, 1.0}
    else:
        variance = 0 * variance + (2 * expected.log_scale).exp().detach()  # type: ignore[attr-defined]
    standardised = (arrays["samples"] - arrays["means"]) / variance.sqrt()
    assert abs(float(standardised.mean())) < 5 / standardised.numel() ** 0.5
    assert float(standardised.square().mean()) == pytest.approx(1, abs=0.05)
    assert float(arrays["latents"].std()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("count", [1, 4, 6, 100])
def test_first_images_across_batches(tmp_path: Path, count: int) -> None:
    model, data = image_model(), Images()
    predict(tmp_path, model, data, Predictions(num_observations=count, num_samples=1))
    arrays = load(tmp_path, "posterior")
    assert torch.equal(arrays["observations"], data.images("test")[:count])
    assert {len(value) for value in arrays.values()} == {min(count, 7)}
    assert len(load(tmp_path, "samples")["samples"]) == 1


def test_the_averaged_model_predicts(tmp_path: Path) -> None:
    model, data = image_model(averaging=0.9), Images()
    results = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        predict(folder, model, data, Predictions())
        results.append({**load(folder, "posterior"), **load(folder, "samples")})
        with torch.no_grad():
            for parameter in model.generative.parameters():
                parameter.fill_(100.0)
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_pictures(tmp_path: Path) -> None:
    """Two panels of eight columns: images left, reconstructions right; samples and means likewise."""
    data = Images()
    predict(tmp_path, image_model(), data, Predictions(num_samples=10))
    folder = tmp_path / "predictions"
    assert sorted(file.name for file in folder.iterdir()) == [
        "posterior.npz", "posterior.png", "samples.npz", "samples.png"
    ]  # fmt: skip
    with Image.open(folder / "posterior.png") as image:
        assert image.size == (2 * (1 + 7 * 33) + 16, 1 + 33)
        pixels = torch.from_numpy(np.array(image))
    first = (255 * data.images("test")[0, 0]).int().repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(pixels[1:33, 1:33, 0].int(), first)
    with Image.open(folder / "samples.png") as image:
        assert image.size == (2 * (1 + 8 * 33) + 16, 1 + 2 * 33)


def test_the_same_callback_twice(tmp_path: Path) -> None:
    callback = Predictions()
    for _ in range(2):
        predict(tmp_path, image_model(), Images(), callback)
        assert len(load(tmp_path, "posterior")["observations"]) == 7


def test_data_that_are_no_images_get_arrays_and_no_pictures(tmp_path: Path) -> None:
    predict(tmp_path, image_model(), Numbers(), Predictions(num_samples=3))
    assert sorted(file.name for file in (tmp_path / "predictions").iterdir()) == ["posterior.npz", "samples.npz"]
    assert load(tmp_path, "samples")["samples"].shape == (3, 1, 8, 8)


def radius(z: Tensor) -> Tensor:
    return z.norm(dim=1)


def test_the_expectation_of_any_function_is_the_weighted_sum(tmp_path: Path) -> None:
    model, data = image_model(), Images()
    predict(tmp_path, model, data, Predictions(function=radius))
    arrays = load(tmp_path, "posterior")
    expected = torch.cat([p.weights.T @ p.sleep.z.norm(dim=1) for _, p in posteriors(model, data)])
    torch.testing.assert_close(arrays["expectations"], expected)


def test_the_posterior_of_observations_in_a_file(tmp_path: Path) -> None:
    model, data = image_model(), Images()
    given = data.images("train")[2:7]
    np.save(tmp_path / "mine.npy", given.numpy())
    predict(tmp_path, model, data, Predictions(observations=str(tmp_path / "mine.npy"), num_observations=4))
    arrays = load(tmp_path, "posterior")
    posterior = model.amortised_posterior(given[:4])
    expected = posterior.expectation(posterior.sleep.z)  # type: ignore[arg-type]
    assert torch.equal(arrays["observations"], given[:4])
    torch.testing.assert_close(arrays["latent_means"], expected)


def test_observations_of_another_shape_or_none_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", np.zeros((5, 8, 8), dtype=np.float32))
    for name, message in (
        ("mine.npy", r"rows of shape \(8, 8\), but .* \(1, 8, 8\)"),
        ("no.npy", "there is no such file"),
    ):
        with pytest.raises(UserError, match=rf"predictions\.observations is .*{message}"):
            predict(tmp_path, image_model(), Images(), Predictions(observations=str(tmp_path / name)))


@pytest.mark.parametrize("wrong", [lambda z: 1.0, lambda z: z.sum(), lambda z: z[:2]])
def test_a_function_of_the_wrong_shape_is_named(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"predictions\.function returns .* for 20 latents"):
        predict(tmp_path, image_model(), Images(), Predictions(function=wrong))


def test_predictions_are_returned_too(tmp_path: Path) -> None:
    """As a caller from Python has it by default."""
    model, data = image_model(), Images()
    returned = trainer(tmp_path, [Predictions()]).predict(model, datamodule=data)
    assert returned is not None
    for (_, expected), posterior in zip(posteriors(model, data), returned, strict=True):
        assert isinstance(posterior, AmortisedPosterior)
        assert torch.equal(posterior.weights, expected.weights)


def test_a_failing_regression_ends_in_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model()
    original = model.regression.fit

    def fit(x: Tensor) -> Any:
        fitted = original(x)
        fitted.failure = "a failure was planted"
        return fitted

    monkeypatch.setattr(model.regression, "fit", fit)
    with pytest.raises(UserError, match=r"a failure was planted; raise model\.learning\.regression\.ridge"):
        predict(tmp_path, model, Images(), Predictions())


@pytest.mark.parametrize("name", ["num_samples", "num_observations"])
def test_senseless_numbers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"predictions.{name} is 0"):
        Predictions(**{name: 0})  # type: ignore[arg-type]
