"""The scale mixture of principal components: its gradient against quadrature, its start, features and checkpoints."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from gradient_error import relative_error
from runs import Images, Numbers, named, trainer
from torch import Tensor

from lightning_alws.contract import check_model
from lightning_alws.errors import UserError
from lightning_alws.kernels import MedianKernel
from lightning_alws.learning import Learning
from lightning_alws.models.scale_mixture import (
    BandEnergies,
    ScaleMixture,
    ScaleMixtureModel,
    band_edges,
    principal_components,
)
from lightning_alws.priors import GaussianMixturePrior, StandardNormal
from lightning_alws.quantile_kernel import QuantileKernel
from lightning_alws.regression import AnnealedRidge

SHAPE = (1, 4, 4)
MIXTURE = functools.partial(GaussianMixturePrior, 2)


def mixture(**changes: Any) -> ScaleMixture:
    """A float64 model of 16 pixels, with scales that differ."""
    settings: dict[str, Any] = {"components": 6, "bands": 3, "prior": MIXTURE} | changes
    model = ScaleMixture(settings.pop("image_shape", SHAPE), "gaussian", **settings).double()
    with torch.no_grad():
        model.scale_exponent.copy_(torch.linspace(0.1, -0.3, len(model.scale_exponent)))
    return model


def learner(likelihood: str = "gaussian", prior: Any = MIXTURE, **learning: Any) -> ScaleMixtureModel:
    kernel = functools.partial(QuantileKernel, bandwidth=2.0, features=BandEnergies)
    regression = functools.partial(AnnealedRidge, kernel=kernel, intercept=True, start=5.0, steps=200)
    settings = {"sleep_samples": 40, "held_out": 20, "centring": 1.0, "averaging": 0.5, "regression": regression}
    return ScaleMixtureModel(
        components=6, bands=3, prior=prior, learning=Learning(**(settings | learning)),
        image_shape=SHAPE, likelihood=likelihood,  # type: ignore[arg-type]
    )  # fmt: skip


def test_bands_are_octaves_as_far_as_whole_numbers_can() -> None:
    assert band_edges(512, 9) == [2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert band_edges(512, 1) == [512]
    for components in range(1, 12):
        for bands in range(1, components + 1):
            edges = [0, *band_edges(components, bands)]
            assert edges[-1] == components
            assert all(a < b for a, b in itertools.pairwise(edges))
    model = mixture(components=7, bands=3)
    assert model.band.tolist() == [0, 0, 1, 1, 2, 2, 2, 3]
    assert model.law(torch.zeros(1, 4).double()).sizes.tolist() == [2, 2, 3, 9]


def test_log_contrast_is_a_polynomial_over_the_bands_within_its_limit() -> None:
    model = mixture(contrasts=3, limit=0.8)
    value = 0.3 * torch.randn(5, 3).double()
    places = torch.linspace(-1, 1, 4).double()
    polynomial = value[:, :1] + value[:, 1:2] * places + value[:, 2:] * (1.5 * places.square() - 0.5)
    z = torch.cat([torch.ones(5, 1).double(), value], dim=1)  # of the mixture's second component
    torch.testing.assert_close(model.log_contrast(z), 0.8 * (polynomial / 0.8).tanh())
    z[:, 1:] *= 1e3
    assert model.log_contrast(z).abs().max() <= 0.8


@pytest.mark.parametrize("count", [200, 12])  # more images than numbers, and fewer
def test_components_are_those_of_the_covariance(count: int) -> None:
    x = torch.randn(count, 16).double() @ torch.randn(16, 16).double() + 3
    mean, directions, deviations = principal_components(x, 6)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(directions.T @ directions, torch.eye(6).double())
    torch.testing.assert_close(x.T.cov() @ directions, directions * deviations.square())
    assert (deviations[:-1] >= deviations[1:]).all()
    torch.testing.assert_close(deviations[0].square(), torch.linalg.eigvalsh(x.T.cov())[-1])
    assert (directions.gather(0, directions.abs().argmax(0, keepdim=True)) > 0).all()  # a sign, which they lack
    assert torch.equal(principal_components(x, 6)[1], directions)


def test_it_begins_as_white_noise_around_the_mean_of_the_data() -> None:
    model = mixture(prior=functools.partial(GaussianMixturePrior, 1, mean_scale=0.0, scale=1e-4))
    images = 0.2 * torch.randn(50, *SHAPE) + 0.4
    model.start_from(images)
    z = model.sample_prior(3)
    torch.testing.assert_close(model.likelihood(z).mean, images.double().mean(0).expand(3, *SHAPE))
    largest = torch.linalg.eigvalsh(images.double().flatten(1).T.cov())[-1].sqrt()
    torch.testing.assert_close(model.log_scale.exp(), (1.2 * largest).expand(7))
    draws = model.likelihood(model.sample_prior(20_000)).sample().flatten(1)
    torch.testing.assert_close(draws.T.cov() / largest.square() / 1.44, torch.eye(16).double(), rtol=0.0, atol=0.05)


def test_images_that_are_all_alike_are_a_start_too() -> None:
    model = mixture()
    model.start_from(torch.ones(9, *SHAPE))
    torch.testing.assert_close(model.directions.T @ model.directions, torch.eye(6).double())
    assert model.sleep(4).x.isfinite().all()


def test_contract_seed_and_a_gradient_for_every_parameter() -> None:
    model = mixture(contrasts=3)
    check_model(model, direct=False)
    model.sleep(30).joint.log_joint.sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert without == []
    watched = model.watched()
    assert set(watched) == {"log_contrast_first", "log_contrast_middle", "log_contrast_last", "deviation"}
    assert watched == model.watched()  # draws of their own seed
    torch.manual_seed(0)
    x = model.sleep(40_000).x
    assert float(watched["deviation"]) == pytest.approx(float(x.square().mean().sqrt()), rel=0.05)


def test_features_do_not_depend_on_the_scales_and_suffice() -> None:
    model = mixture()
    features = BandEnergies(SHAPE)
    features.attach(model)
    torch.manual_seed(3)
    x = model.sleep(8).x
    before = features(x)
    assert before.shape == (8, 4)
    directions, scale = model.directions, model.log_scale.exp()
    second = (x.flatten(1) @ directions / scale[:-1])[:, 2:3].square().mean(1)  # of the second of bands of 2, 1, 3
    assert model.band.tolist() == [0, 0, 1, 2, 2, 2, 3]
    torch.testing.assert_close(before[:, 1], (second + 0.01).log())
    with torch.no_grad():
        model.scale_exponent += math.log(7) / model.scale_rate
    torch.testing.assert_close(features(7 * x), before)  # centre is 0 here
    # One direction ten times as strong, in x as in s.
    stretch = torch.ones(7).double()
    stretch[4] = 10
    coordinates = x.flatten(1) @ directions
    stretched = x.flatten(1) + (coordinates * (stretch[:-1] - 1)) @ directions.T
    with torch.no_grad():
        model.scale_exponent += (stretch / 7).log() / model.scale_rate
    torch.testing.assert_close(features(stretched.view_as(x)), before)


def exact_log_marginal(model: ScaleMixture, x: Tensor) -> Tensor:
    """log p(x) of one contrast and one component by a fine grid, differentiable in every parameter."""
    grid = torch.linspace(-4, 4, 801, dtype=torch.float64)
    z = torch.stack([torch.zeros_like(grid), grid], dim=1)
    law = model.likelihood(z)
    log_joint = model.log_prior(z) - law.log_normaliser + law.sufficient_statistics(x) @ law.natural_parameters.T
    return log_joint.logsumexp(1) + math.log(0.01)


def test_quadrature_is_that_of_the_density() -> None:
    """The grid that gradients are compared with, against draws of z."""
    model = toy()
    torch.manual_seed(0)
    x = model.sleep(4000).x
    z = model.sample_prior(20_000)
    law = model.likelihood(z)
    with torch.no_grad():
        inner = law.sufficient_statistics(x[:5]) @ law.natural_parameters.T - law.log_normaliser
        monte_carlo = inner.logsumexp(1) - math.log(len(z))
        torch.testing.assert_close(exact_log_marginal(model, x[:5]), monte_carlo, rtol=0.0, atol=0.05)


def toy() -> ScaleMixture:
    """Four pixels, two components in one band, one contrast."""
    prior = functools.partial(GaussianMixturePrior, 1, mean_scale=0.0, scale=0.5)
    model = mixture(image_shape=(1, 2, 2), components=2, bands=1, contrasts=1, prior=prior, scale_rate=1.0)
    with torch.no_grad():
        model.scale_exponent.copy_(torch.tensor([0.4, 0.0, -0.5]))
    return model


def toy_error(count: int, repeats: int) -> float:
    model = toy()

    def kernel(shape: tuple[int, ...]) -> MedianKernel:
        built = MedianKernel(shape, features=BandEnergies)
        built.network.attach(model)  # type: ignore[union-attr, operator]
        return built.double()

    return relative_error(model, functools.partial(exact_log_marginal, model), kernel, 0.3, count, repeats)


@pytest.mark.parametrize("repeats", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_amortised_gradient_converges_to_the_exact_one(repeats: int) -> None:
    errors = [toy_error(count, repeats) for count in (750, 3000)]  # 0.221 and 0.120 over 20 repeats
    assert errors[1] < 0.15, errors
    assert errors[0] > 1.5 * errors[1], errors


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_unbounded"])
def test_a_run_learns_everything(likelihood: str, tmp_path: Path) -> None:
    """In float32, from N = 500 sleep samples."""
    module, data = learner(likelihood, sleep_samples=500), Images("gaussian", SHAPE)
    trainer(tmp_path, max_steps=1).fit(module, datamodule=data)
    before = named(module.generative)
    assert "prior.factors" in before
    trainer(tmp_path, max_steps=4).fit(module, datamodule=data)
    after = named(module.generative)
    assert [name for name, value in before.items() if torch.equal(value, after[name])] == []
    assert all(value.isfinite().all() for value in after.values())


class CountedImages(Images):
    """Says how often training images were asked for outside of batches."""

    asked = 0

    def images(self, split: str) -> Tensor:
        self.asked += split == "train"
        return super().images(split)

    def train_dataloader(self) -> Any:
        self.asked -= 1
        return super().train_dataloader()


def test_the_start_is_that_of_the_data_and_stays_in_the_checkpoint(tmp_path: Path) -> None:
    """Neither a resumed run, nor another fit, nor a model loaded for prediction looks at the images again."""
    start: dict[str, Tensor] = {}

    class Watch(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            start.update({name: value.clone() for name, value in pl_module.state_dict().items()})

    torch.manual_seed(0)
    module, data = learner(), CountedImages("gaussian", SHAPE)
    run = trainer(tmp_path, [Watch()], max_steps=2)
    run.fit(module, datamodule=data)
    assert data.asked > 0
    mean, directions, _ = principal_components(data.splits["train"].flatten(1).double(), 6)
    torch.testing.assert_close(start["generative.centre"].flatten(), mean.float())
    torch.testing.assert_close(start["generative.directions"], directions.float())
    for name in ("centre", "directions", "scale_exponent"):
        assert torch.equal(start[f"averaged.module.{name}"], start[f"generative.{name}"])
    run.save_checkpoint(tmp_path / "at_2.ckpt")
    state = {name: value.clone() for name, value in module.state_dict().items()}

    other, unseen = learner(), CountedImages("gaussian", SHAPE)
    trainer(tmp_path, [Watch()], max_steps=3).fit(other, datamodule=unseen, ckpt_path=tmp_path / "at_2.ckpt")
    assert unseen.asked == 0
    assert all(torch.equal(value, start[name]) for name, value in state.items())
    loaded = learner()
    loaded.load_state_dict(state)
    trainer(tmp_path, max_steps=1).fit(loaded, datamodule=unseen)
    assert unseen.asked == 0
    assert torch.equal(loaded.generative.directions, directions.float())  # type: ignore[arg-type]

    torch.manual_seed(0)
    again = learner()
    trainer(tmp_path, max_steps=2).fit(again, datamodule=CountedImages("gaussian", SHAPE))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in state.items())


def test_mistakes_are_named(tmp_path: Path) -> None:
    def refused(match: str, shape: Any = SHAPE, likelihood: Any = "gaussian", **settings: Any) -> None:
        with pytest.raises(UserError, match=match):
            ScaleMixture(shape, likelihood, **({"components": 6, "bands": 3} | settings))

    refused("has no attribute 'image_shape'", shape=None)
    refused("likelihood is 'poisson'", likelihood="poisson")
    refused("likelihood is 'bernoulli', but a Gaussian scale mixture makes real numbers", likelihood="bernoulli")
    refused("components is 16, but an image has 16 numbers.*at most 15", components=16)
    refused("components is 0", components=0)
    refused("bands is 7, for model.components 6", bands=7)
    refused("contrasts is 5, but over 3 bands and the rest.*at most 4", contrasts=5)
    refused("limit is 0", limit=0)
    refused("scale_rate is -1", scale_rate=-1)
    refused("model.prior is no prior over 2 numbers", prior=GaussianMixturePrior)
    with pytest.raises(UserError, match="components is 6, but they are taken from 6 training images; give at most 5"):
        mixture().start_from(torch.randn(6, *SHAPE))
    with pytest.raises(UserError, match="BandEnergies are the features of a ScaleMixture, but the model is a Flatten"):
        BandEnergies(SHAPE).attach(torch.nn.Flatten())
    with pytest.raises(UserError, match="principal components of training images, but Numbers has none"):
        trainer(tmp_path).fit(learner(), datamodule=Numbers())


def test_a_prior_without_parameters_is_left_out() -> None:
    model = mixture(prior=StandardNormal)
    assert not model.prior_is_learnt
    assert model.latents_are_real
    check_model(model, direct=False)
    assert model.sleep(3).joint.log_prior is None
    assert mixture(prior=None).prior.probabilities.tolist() == [1.0]  # type: ignore[union-attr]
