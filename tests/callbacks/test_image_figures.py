"""The figures that look at images: interpolations, nearest training images, statistics of pixels and filters."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from runs import Images, Numbers, image_model, trainer
from torch import Tensor

from callbacks import ImageStatistics, LatentInterpolations, NearestNeighbours
from callbacks.image_data import count_images, has_labels, some_images
from callbacks.interpolations import great_circles
from callbacks.neighbours import nearest
from lightning_alws.errors import UserError
from lightning_alws.likelihoods import Gaussian
from lightning_alws.metrics.filters import kurtosis, responses
from lightning_alws.models import ImageModel
from lightning_alws.networks import MLPDecoder
from lightning_alws.priors import BernoulliPrior

FIGURES = {
    "interpolations": functools.partial(LatentInterpolations, rows=2, steps=3),
    "neighbours": functools.partial(NearestNeighbours, images=5, shown=2, neighbours=2),
    "statistics": functools.partial(ImageStatistics, images=20),
}


@pytest.mark.parametrize(("likelihood", "shape"), [("gaussian", (3, 8, 8)), ("bernoulli", (1, 8, 8))])
@pytest.mark.slow
def test_a_run_draws_them_all_and_logs_their_numbers(likelihood: str, shape: Any, tmp_path: Path) -> None:
    run = trainer(tmp_path, [figure() for figure in FIGURES.values()], max_steps=2, val_check_interval=2)
    data = Images(likelihood, shape)
    run.fit(image_model(likelihood, shape), datamodule=data)
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    assert names == {f"{name}_step_000002.png" for name in FIGURES}
    for name in names:
        assert min(Image.open(tmp_path / "figures" / name).size) > 100
    logged = {name.removeprefix("val/") for name in run.callback_metrics if name.startswith("val/")}
    assert {"neighbour_distance_means", "neighbour_copies", "kurtosis_pixels_data", "kurtosis_coarse_means"} <= logged


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES)
def test_data_that_are_no_images_are_refused(figure: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which looks at images"):
        figure().draw(image_model(), Numbers(), "val")


@pytest.mark.parametrize("figure", [
    lambda: LatentInterpolations(rows=0), lambda: LatentInterpolations(steps=1), lambda: NearestNeighbours(images=1),
    lambda: NearestNeighbours(neighbours=0), lambda: ImageStatistics(images=1),
])  # fmt: skip
def test_senseless_counts_are_refused(figure: Any) -> None:
    with pytest.raises(UserError):
        figure()


def test_great_circles_keep_lengths_and_turn_evenly() -> None:
    start, end = torch.randn(2, 50, 7, dtype=torch.float64)
    way = great_circles(start, end, 5)
    torch.testing.assert_close(way[:, 0], start)
    torch.testing.assert_close(way[:, -1], end)
    lengths = way.norm(dim=2)
    torch.testing.assert_close(lengths[:, 2], (lengths[:, 0] * lengths[:, 4]).sqrt())
    directions = way / lengths[..., None]
    turns = (directions[:, 1:] * directions[:, :-1]).sum(2).clamp(-1, 1).acos()
    torch.testing.assert_close(turns, turns.mean(1, keepdim=True).expand_as(turns))
    same = great_circles(start, start, 3)  # no turn at all
    torch.testing.assert_close(same, start[:, None].expand_as(same))


def test_interpolations_take_real_latents_only() -> None:
    model = ImageModel(
        latent_dim=2,
        prior=BernoulliPrior,
        decoder=functools.partial(MLPDecoder, hidden=[4]),
        image_shape=(1, 8, 8),
        likelihood="bernoulli",
    )
    with pytest.raises(UserError, match="no vectors of real numbers"):
        LatentInterpolations().draw(model, Images(), "val")


def test_nearest_is_what_a_loop_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callbacks.neighbours.CHUNK", 5)
    data = Images("gaussian", (3, 8, 8))
    queries = data.images("val")
    distances, rows = nearest(queries, data, 3)
    pairs = torch.cdist(queries.flatten(1).double(), data.images("train").flatten(1).double()) / 192**0.5
    expected = pairs.topk(3, largest=False)
    torch.testing.assert_close(distances.double(), expected.values, rtol=1e-4, atol=1e-5)
    assert torch.equal(rows, expected.indices)


class Copies:
    """A model whose means are training images, or as far from them as other real images."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def likelihood(self, z: Tensor) -> Gaussian:
        return Gaussian(self.images[: len(z)], torch.tensor(0.01).log())

    def sample_prior(self, count: int) -> Tensor:
        return torch.zeros(count, 1)


def test_copies_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    images = {split: torch.rand(count, 1, 8, 8) for split, count in (("train", 300), ("val", 200), ("test", 200))}
    data = Images("gaussian", splits=images)
    monkeypatch.setattr("callbacks.neighbours.image_model", lambda callback, module, data: module)
    figure = NearestNeighbours(images=200)
    copies = figure.measure(Copies(images["train"] + 1e-3), data, "val")
    assert copies["neighbour_copies"] == 1
    assert copies["neighbour_distance_means"] < 0.01 * copies["neighbour_distance_held_out"]
    fresh = figure.measure(Copies(images["test"]), data, "val")
    assert fresh["neighbour_copies"] < 0.05
    assert fresh["neighbour_distance_means"] == pytest.approx(fresh["neighbour_distance_held_out"], rel=0.05)


def test_kurtosis_and_filters() -> None:
    torch.manual_seed(0)
    assert kurtosis(torch.randn(200_000)) == pytest.approx(3, abs=0.1)
    assert kurtosis(torch.tensor([-1.0, 1.0])) == pytest.approx(1)
    sign = torch.where(torch.rand(200_000) < 0.5, -1.0, 1.0)
    assert kurtosis(sign * torch.empty(200_000).exponential_()) == pytest.approx(6, abs=0.5)
    assert kurtosis(torch.ones(5)) != kurtosis(torch.ones(5))
    ramp = torch.arange(8.0).expand(2, 3, 8, 8)
    found = responses(ramp)
    assert (found["horizontal"] == 1).all()
    assert (found["vertical"] == 0).all()
    assert (found["diagonal"] == 0).all()
    assert (found["coarse"] == 4).all()
    assert torch.equal(found["pixels"], ramp[:, 0].flatten())


def test_images_are_asked_for_by_rows_where_possible() -> None:
    data = Images()
    assert count_images(data, "val") == 6
    assert torch.equal(some_images(data, "val", torch.tensor([4, 1])), data.images("val")[[4, 1]])
    assert not has_labels(data)
    asked = []
    rowed = SimpleNamespace(sizes={"val": 9}, images=lambda split, rows: asked.append(rows), labels=1, num_classes=0)
    some_images(rowed, "val", 3)
    assert asked == [slice(3)]
    assert count_images(rowed, "val") == 9
    assert not has_labels(rowed)
