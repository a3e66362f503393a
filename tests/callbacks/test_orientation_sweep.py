"""The numbers of generators whose map from latent angle to orientation is known, and the figure of a real run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import FIXED, Numbers, image_model, trainer
from torch import Tensor
from torch.distributions import Normal

from callbacks import OrientationSweep
from datamodules import Gabors
from lightning_alws.errors import UserError
from lightning_alws.learning import Learning
from lightning_alws.likelihoods import Gaussian, Likelihood
from lightning_alws.models import CircleModel
from lightning_alws.models.circle import CircleGenerator
from lightning_alws.networks import MLPDecoder

Map = Callable[[Tensor], Tensor]


class Known(CircleGenerator):
    """Makes the Gabor of orientation f(a), dimmed, at latent angle a."""

    def __init__(self, data: Gabors, orientation: Map, brightness: float = 1.0, scale: float = 0.1) -> None:
        super().__init__(data.event_shape, functools.partial(MLPDecoder, hidden=[2]))
        self.data, self.orientation, self.brightness = data, orientation, brightness
        torch.nn.init.constant_(self.pixels.log_scale, math.log(scale))

    def likelihood(self, z: Tensor) -> Likelihood:
        theta = self.orientation(torch.atan2(z[:, 1], z[:, 0]))
        return Gaussian(self.brightness * self.data.gabor(theta), self.pixels.scale.log())


@pytest.fixture
def data() -> Gabors:
    small = Gabors(train_size=12, validation_size=8, test_size=9, batch_size=4)
    small.setup()
    return small


def module(model: CircleGenerator) -> Any:
    return SimpleNamespace(evaluation_model=model, dtype=torch.float32, device=torch.device("cpu"))


@torch.no_grad()
def measure(data: Gabors, orientation: Map, draws: int = 2000, **settings: float) -> dict[str, float]:
    return OrientationSweep(draws=draws).measure(module(Known(data, orientation, **settings)), data, "test")


@pytest.mark.parametrize("turns", [-2, -1, 1, 2])
def test_even_maps_are_uniform_and_wind_as_they_do(data: Gabors, turns: int) -> None:
    """θ = turns · a / 2 + offset; two turns are uniform too, which only the winding number shows."""
    numbers = measure(data, lambda a: turns * a / 2 + 0.3)
    assert numbers["winding_number"] == turns
    assert numbers["sweep_kuiper"] < 0.006
    assert 0.01 < numbers["orientation_kuiper"] < 0.05
    assert numbers["gabor_distance"] < 0.01


def test_a_map_that_goes_there_and_back_winds_not_at_all(data: Gabors) -> None:
    numbers = measure(data, lambda a: a.abs())
    assert numbers["winding_number"] == 0
    assert numbers["sweep_kuiper"] < 0.01


def test_an_uneven_map_has_the_kuiper_distance_of_its_density(data: Gabors) -> None:
    """θ with distribution function F = u + 0.2 sin(2πu)/(2π), u = θ/π: V = 0.2/π."""

    def orientation(a: Tensor) -> Tensor:
        target = a.double() / (2 * math.pi)
        u = target
        for _ in range(50):
            u = u - (u + 0.2 * (2 * math.pi * u).sin() / (2 * math.pi) - target) / (1 + 0.2 * (2 * math.pi * u).cos())
        return (math.pi * u).float()

    numbers = measure(data, orientation)
    assert numbers["winding_number"] == 1
    assert numbers["sweep_kuiper"] == pytest.approx(0.2 / math.pi, abs=0.004)
    assert numbers["orientation_kuiper"] == pytest.approx(0.2 / math.pi, abs=0.04)


def test_distance_is_that_to_the_nearest_gabor_over_its_norm(data: Gabors) -> None:
    assert measure(data, lambda a: a / 2, brightness=0.7)["gabor_distance"] == pytest.approx(0.3, abs=0.002)


def test_log_likelihood_is_that_of_the_split(data: Gabors) -> None:
    numbers = measure(data, lambda a: a / 2, scale=0.3)
    theta = math.pi * torch.arange(5000, dtype=torch.float64) / 5000
    log_prob = Normal(data.gabor(theta), 0.3).log_prob(data.observations("test")[:, None]).flatten(2).sum(2)
    reference = log_prob.logsumexp(1).mean() - math.log(5000)
    assert numbers["exact_log_likelihood"] == pytest.approx(float(reference), abs=1e-2)


def test_a_model_that_has_diverged_has_no_distance(data: Gabors) -> None:
    numbers = measure(data, lambda a: a / 2, brightness=math.nan)
    assert math.isnan(numbers["orientation_kuiper"])
    assert numbers["winding_number"] == 0
    figure = OrientationSweep(draws=20).draw(module(Known(data, lambda a: a * math.nan)), data, "test")
    figure.canvas.draw()


@pytest.mark.parametrize("turns", [-1, 1])
@torch.no_grad()
def test_sweep_begins_and_goes_as_the_data_do(data: Gabors, turns: int) -> None:
    model = Known(data, lambda a: turns * a / 2 + 0.3)
    figure = OrientationSweep(draws=100).draw(module(model), data, "test")
    images = [axis.images[0].get_array() for axis in figure.subfigs[0].axes]
    assert len(images) == 36
    for real, mean in zip(images[:12], images[12:24], strict=True):
        assert np.abs(real - mean).max() < 0.05  # half a degree off at most


def circle_model(**settings: Any) -> CircleModel:
    learning = Learning(sleep_samples=20, held_out=10, regression=FIXED, averaging=0.9)
    return CircleModel(functools.partial(MLPDecoder, hidden=[4]), learning, event_shape=(1, 16, 16), **settings)


@pytest.mark.slow
def test_a_run_leaves_pictures_and_numbers(tmp_path: Path, data: Gabors) -> None:
    figure = OrientationSweep(draws=30, templates=40)
    run = trainer(tmp_path, [figure], max_steps=4, val_check_interval=2, check_val_every_n_epoch=None)
    model = circle_model()
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    names = {"exact_log_likelihood", "gabor_distance", "orientation_kuiper", "sweep_kuiper", "winding_number"}
    assert {f"test/{name}" for name in names} <= set(run.callback_metrics)
    files = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert files == ["step_000002.png", "step_000004.png", "test.png"]
    for file in files:
        with Image.open(tmp_path / "figures" / file) as image:
            assert (image.format, image.width > 900) == ("PNG", True)
    assert figure.provenance() == {"orientation_sweep": {"draws": 30, "templates": 40}}


def test_other_models_and_data_are_refused(tmp_path: Path, data: Gabors) -> None:
    with pytest.raises(UserError, match="made for CircleModel, but the model is ImageModel"):
        trainer(tmp_path, [OrientationSweep()]).fit(image_model(shape=(1, 16, 16)), datamodule=data)
    with pytest.raises(UserError, match="the data are Numbers"):
        trainer(tmp_path, [OrientationSweep()]).fit(circle_model(), datamodule=Numbers())


@pytest.mark.parametrize(("name", "value"), [("draws", 0), ("templates", 2)])
def test_senseless_counts_are_refused(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"orientation_sweep.{name} is {value}"):
        OrientationSweep(**{name: value})
