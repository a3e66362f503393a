"""Observations of the softplus toy: their law, their seeds, mistakes."""

from __future__ import annotations

import pytest
import torch

from datamodules import SoftplusData
from lightning_alws.errors import UserError
from lightning_alws.models.softplus_toy import SoftplusGenerator


def test_splits_follow_the_model_and_the_seed() -> None:
    data = SoftplusData(norm=1.3, noise_scale=0.2, train_size=20_000, validation_size=30, test_size=40)
    data.setup()
    x = data.observations("train")
    assert x.shape == (20_000, *data.event_shape)
    assert data.sizes == {"train": 20_000, "val": 30, "test": 40}
    made = SoftplusGenerator(1.3, 45.0, 0.2).sleep(20_000).x
    levels = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99])
    torch.testing.assert_close(x.quantile(levels), made.quantile(levels), rtol=0, atol=0.08)
    again, other = SoftplusData(1.3, 0.2, 20), SoftplusData(1.3, 0.2, 20, seed=1)
    again.setup()
    other.setup()
    assert not torch.equal(again.observations("train"), other.observations("train"))
    assert not torch.equal(again.observations("train"), again.observations("val")[:20])


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="data.norm is 0"):
        SoftplusData(norm=0)
    with pytest.raises(UserError, match="data.noise_scale is -1"):
        SoftplusData(noise_scale=-1)
    with pytest.raises(UserError, match="train_size"):
        SoftplusData(train_size=0)
