"""The map of a mixture prior's components: numbers against counts by hand, pictures in the run folder."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Images, image_model, trainer

from callbacks import ComponentMap, ResultsFile
from callbacks.component_map import extent, purity, tile, tinted
from callbacks.results import FILE
from lightning_alws.errors import UserError
from lightning_alws.learning import Learning
from lightning_alws.models import ImageModel
from lightning_alws.networks import MLPDecoder
from lightning_alws.priors import GaussianMixturePrior


def mixture_model(latent_dim: int = 2, likelihood: Any = "bernoulli") -> ImageModel:
    return ImageModel(
        latent_dim,
        functools.partial(MLPDecoder, hidden=[6]),
        Learning(sleep_samples=40, held_out=10, learning_rate=1e-30),
        prior=functools.partial(GaussianMixturePrior, components=3),
        image_shape=(1, 8, 8),
        likelihood=likelihood,
    )


class Labelled(Images):
    """Random images of three classes."""

    def labels(self, split: str) -> torch.Tensor:
        return torch.arange(len(self.images(split))) % 3


def run(folder: Path, module: Any, data: Any, **settings: Any) -> dict[str, Any]:
    figure = ComponentMap(**({"columns": 2, "tiles": 3} | settings))
    done = trainer(folder, [figure, ResultsFile()], max_steps=2, val_check_interval=2)
    done.fit(module, datamodule=data)
    done.test(module, datamodule=data, verbose=False)
    return json.loads((folder / FILE).read_text())["metrics"]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("latent_dim", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_pictures_and_numbers_lie_in_the_run_folder(tmp_path: Path, latent_dim: int, likelihood: str) -> None:
    module = mixture_model(latent_dim, likelihood)
    prior: Any = module.generative.prior
    with torch.no_grad():
        prior.component.logits.copy_(torch.tensor([0.5, 0.49, 0.01]).log())
    metrics = run(tmp_path, module, Labelled(likelihood))
    assert metrics["test/components"] == metrics["val/components"] == 2
    weights = prior.probabilities.detach()
    assert metrics["test/effective_components"] == pytest.approx(float(weights.pow(-weights).prod()))
    # The greatest class of the seven test images has three: the least that any assignment gets.
    assert 3 / 7 - 1e-6 <= metrics["test/component_purity"] <= 1
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["step_000002.png", "test.png"]


def test_data_without_labels_have_no_purity(tmp_path: Path) -> None:
    assert "test/component_purity" not in run(tmp_path, mixture_model(), Images())


def test_purity_is_the_majoritys_share() -> None:
    assigned = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    labels = torch.tensor([5, 5, 1, 1, 0, 0, 0])
    assert purity(assigned, labels) == pytest.approx((2 + 3) / 7)
    assert purity(labels, labels) == 1
    assert purity(torch.zeros(7).long(), labels) == pytest.approx(3 / 7)


def test_map_covers_the_surviving_components() -> None:
    prior = GaussianMixturePrior(3, 2, scale=0.1)
    with torch.no_grad():
        prior.means.copy_(torch.tensor([[0.0, 0.0], [2.0, 1.0], [9.0, 9.0]]))
        prior.component.logits.copy_(torch.tensor([0.5, 0.499, 0.001]).log())
    low, high = extent(prior, 0.02)
    torch.testing.assert_close(low, torch.tensor([-0.25, -0.25]), rtol=0, atol=1e-4)
    torch.testing.assert_close(high, torch.tensor([2.25, 1.25]), rtol=0, atol=1e-4)
    # Where none survives by that measure, the greatest is shown.
    torch.testing.assert_close(extent(prior, 0.9)[1], torch.tensor([0.25, 0.25]), rtol=0, atol=1e-4)


def test_tiles_lie_row_by_row() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 2)
    picture = tile(images, 3)
    assert picture.shape == (4, 6, 1)
    assert picture[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_tint_is_full_where_the_image_is_black() -> None:
    images = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    black, white = tinted(images, torch.tensor([1, 1]))
    assert (white == 0).all()
    assert black[0].min() > black[1].max()  # the second colour is red


@pytest.mark.parametrize("model", [image_model, functools.partial(mixture_model, 1)])
def test_priors_without_a_plane_are_refused(tmp_path: Path, model: Any) -> None:
    with pytest.raises(UserError, match="ComponentMap, but model.prior is"):
        trainer(tmp_path, [ComponentMap()], max_steps=1).fit(model(), datamodule=Images())


@pytest.mark.parametrize("name", ["columns", "tiles", "survival", "images"])
def test_senseless_numbers_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"ComponentMap.{name} is -1"):
        ComponentMap(**{name: -1})
