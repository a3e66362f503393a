"""Sparse mixtures: the data are what their docstring says, and seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ICAMixtures
from lightning_alws.errors import UserError

SMALL = {
    "patch_size": 6,
    "num_sources": 5,
    "num_patches": 300,
    "train_size": 4000,
    "validation_size": 7,
    "test_size": 9,
}


def mixtures(**settings) -> ICAMixtures:
    data = ICAMixtures(**(SMALL | settings))
    data.setup()
    return data


def test_covariance_is_that_of_unit_laplace_sources_through_the_mixing() -> None:
    data = mixtures(train_size=40_000)
    x = data.observations("train").double()
    assert data.event_shape == (36,)
    assert data.mixing.shape == (36, 5)
    assert data.sizes == {"train": 40_000, "val": 7, "test": 9}
    covariance = 2 * data.mixing @ data.mixing.T + 0.01 * torch.eye(36)
    torch.testing.assert_close(torch.cov(x.T).float(), covariance, atol=0.03, rtol=0)
    torch.testing.assert_close(x.std(0).float(), torch.full((36,), 1.01**0.5), atol=0.01, rtol=0)
    torch.testing.assert_close(x.mean(0).float(), torch.zeros(36), atol=0.005, rtol=0)


def test_sources_are_independent_and_laplace_once_unmixed() -> None:
    data = mixtures(noise_scale=0.0, train_size=40_000)
    x = data.observations("train").double()
    z = x @ torch.linalg.pinv(data.mixing.double()).T
    assert torch.linalg.matrix_rank(x, atol=1e-3) == 5
    torch.testing.assert_close(z.abs().mean(0), torch.ones(5, dtype=torch.float64), atol=0.03, rtol=0)
    standard = z / z.std(0)
    torch.testing.assert_close(
        standard.pow(4).mean(0), torch.full((5,), 6.0, dtype=torch.float64), atol=0.7, rtol=0
    )  # a normal's is 3
    dependence = torch.corrcoef(z.abs().T) - torch.eye(5)
    assert dependence.abs().max() < 0.03


def test_draws_follow_the_seed_and_splits_differ() -> None:
    first, again, other = mixtures(), mixtures(), mixtures(seed=1)
    for split in ("train", "val", "test"):
        assert torch.equal(first.observations(split), again.observations(split))
        assert not torch.equal(first.observations(split), other.observations(split))
    assert torch.equal(first.mixing, again.mixing)
    assert not torch.equal(first.observations("train")[:7], first.observations("val"))


def test_photographs_of_ones_own(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    own = mixtures(source=str(tmp_path))
    assert not torch.allclose(own.mixing, mixtures().mixing)
    assert own.observations("train").isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_sources": 36}, "allow 35 at most"),
        ({"num_patches": 36}, "data.num_patches is 36"),
        ({"noise_scale": -1.0}, "data.noise_scale is -1"),
        ({"train_size": 1}, "data.train_size is 1"),
        ({"source": "nowhere"}, "data.source is nowhere"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mixtures(**settings)


def test_photographs_without_structure_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.full((50, 50), 100, dtype=np.uint8)).save(tmp_path / "fog.png")
    with pytest.raises(UserError, match="too much alike"):
        mixtures(source=str(tmp_path))
