"""Gabor functions against a loop over pixels, and their orientations against the uniform law."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from datamodules import Gabors
from datamodules.gabors import gabor
from lightning_alws.errors import UserError


def by_loops(theta: float, size: int) -> Tensor:
    image = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            x, y = (-1 + 2 * i / (size - 1) for i in (column, row))
            u = x * math.cos(theta) + y * math.sin(theta)
            v = -x * math.sin(theta) + y * math.cos(theta)
            image[row, column] = math.exp(-(u * u + 0.64 * v * v) / 0.18) * math.cos(2 * math.pi * u)
    return image


def ready(**settings: int) -> Gabors:
    data = Gabors(**settings)
    data.setup()
    return data


def test_gabor_is_its_formula() -> None:
    theta = torch.tensor([0.0, 0.4, 1.9, -2.0], dtype=torch.float64)
    images = gabor(theta, 16)
    assert images.shape == (4, 1, 16, 16)
    for angle, image in zip(theta, images, strict=True):
        torch.testing.assert_close(image[0], by_loops(float(angle), 16))


def test_gabor_has_a_bright_bar_between_two_dark_ones_across_theta() -> None:
    (upright,) = gabor(torch.zeros(1, dtype=torch.float64), 17)[0]
    assert upright.max() == upright[8, 8] == 1
    assert (upright[4:13, 8] > 0.1).all()  # along the column, x = 0
    # Darkest at x = ±0.375: half a wavelength, drawn inwards by the envelope.
    assert {5, 11} == set(upright[8].topk(2, largest=False).indices.tolist())
    assert float(upright.min()) == pytest.approx(-math.exp(-(0.375**2) / 0.18) / 2**0.5)
    torch.testing.assert_close(gabor(torch.tensor([math.pi / 2], dtype=torch.float64), 17)[0, 0], upright.T)


def test_gabor_has_period_pi_and_a_norm_that_hardly_changes() -> None:
    theta = torch.linspace(0, math.pi, 50, dtype=torch.float64)
    torch.testing.assert_close(gabor(theta), gabor(theta + math.pi))
    norm = gabor(theta).flatten(1).norm(dim=1)
    assert norm.max() / norm.min() < 1.001


def test_images_are_the_gabors_of_their_orientations() -> None:
    data = ready(train_size=30, validation_size=5, test_size=7)
    assert data.event_shape == (1, 16, 16)
    assert data.sizes == {"train": 30, "val": 5, "test": 7}
    for split in data.sizes:
        images = data.observations(split)
        assert images.dtype == torch.float32
        assert images.abs().max() <= 1
        torch.testing.assert_close(images, gabor(data.orientations(split)).float())
    assert ready(size=9, train_size=2, validation_size=1, test_size=1).observations("train").shape == (2, 1, 9, 9)


def test_orientations_are_uniform_seeded_and_other_in_each_split() -> None:
    data = Gabors(seed=3)
    angles = {split: data.orientations(split) for split in ("train", "val", "test")}
    assert [len(a) for a in angles.values()] == [10_000, 1_000, 1_000]
    for split, theta in angles.items():
        assert scipy.stats.kstest(theta.numpy() / math.pi, "uniform").pvalue > 0.001
        assert torch.equal(theta, Gabors(seed=3, batch_size=7).orientations(split))
        assert not torch.equal(theta, Gabors(seed=4).orientations(split))
    assert not torch.equal(angles["val"], angles["test"])
    assert not torch.equal(angles["val"], angles["train"][:1_000])


def test_batches_hold_the_training_images_once() -> None:
    data = ready(train_size=25, batch_size=10, validation_size=1, test_size=1)
    seen = torch.cat(list(data.train_dataloader())).flatten(1)
    assert sorted(seen.sum(1).tolist()) == sorted(data.observations("train").flatten(1).sum(1).tolist())


@pytest.mark.parametrize("name", ["train_size", "validation_size", "test_size", "batch_size"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}=0 is below 1"):
        Gabors(**{name: 0})


def test_too_few_pixels_are_refused() -> None:
    with pytest.raises(UserError, match="size=3 leaves no room"):
        Gabors(size=3)
