"""Data drawn from models with a closed form: their covariances, their seeds, their mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from datamodules import ArrayDataModule, GaussianProcessSeries, LinearGaussianData
from lightning_alws.errors import UserError

CLASSES = [LinearGaussianData, GaussianProcessSeries]


def drawn(data: ArrayDataModule) -> ArrayDataModule:
    data.setup()
    return data


@pytest.mark.parametrize("make", CLASSES)
def test_splits_have_their_sizes_and_differ(make: Any) -> None:
    data = drawn(make(train_size=30, validation_size=20, test_size=20))
    assert data.sizes == {"train": 30, "val": 20, "test": 20}
    assert data.observations("train").dtype == torch.float32
    assert tuple(data.observations("train").shape[1:]) == data.event_shape
    assert not torch.equal(data.observations("val"), data.observations("test"))


@pytest.mark.parametrize("make", CLASSES)
def test_data_follow_the_seed_and_leave_the_global_generator_alone(make: Any) -> None:
    before = torch.get_rng_state()
    first, again, other = (drawn(make(train_size=10, seed=seed)).observations("train") for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_factor_data_have_the_mean_and_the_covariance_they_name() -> None:
    data = LinearGaussianData(train_size=40_000)
    data.setup()
    x = data.observations("train").double()
    spread = data.true_covariance.diagonal().sqrt()
    torch.testing.assert_close((x.mean(0) - data.true_mean) / spread, torch.zeros(8).double(), rtol=0, atol=0.03)
    difference = (x.T.cov() - data.true_covariance) / spread[:, None] / spread
    torch.testing.assert_close(difference, torch.zeros(8, 8).double(), rtol=0, atol=0.04)


def test_series_are_latents_and_noise_of_the_covariances_they_name() -> None:
    data = GaussianProcessSeries(points=6, train_size=40_000)
    data.setup()
    latent, observed = data.truth.covariance(6)
    x, z = data.observations("train").double(), data.latents("train").double()
    torch.testing.assert_close(z.T.cov(), latent, rtol=0, atol=0.09)
    torch.testing.assert_close(x.T.cov(), observed, rtol=0, atol=0.09)
    torch.testing.assert_close((x - z).T.cov(), 0.25 * torch.eye(6).double(), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (LinearGaussianData, {"train_size": 0}, "data.train_size is 0"),
        (LinearGaussianData, {"latent_dim": 8}, "data.latent_dim is 8 and data.observed_dim 8"),
        (GaussianProcessSeries, {"points": 1}, "data.points is 1"),
        (GaussianProcessSeries, {"test_size": 0}, "data.test_size is 0"),
        (GaussianProcessSeries, {"noise": 0.0}, r"data\.noise is 0\.0; give a positive number"),
    ],
)
def test_mistakes_are_named(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**arguments)
