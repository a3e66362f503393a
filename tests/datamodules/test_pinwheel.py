"""The pinwheel against its formula point by point, its symmetry, and its moments."""

from __future__ import annotations

import math

import pytest
import torch

from datamodules.pinwheel import Pinwheel, pinwheel
from lightning_alws.errors import UserError


def made(**changes) -> Pinwheel:
    data = Pinwheel(**changes)
    data.setup()
    return data


def test_points_follow_the_formula() -> None:
    """Johnson's pinwheel: features times a rotation by 2π k/K + rate · exp(radius)."""
    arm = torch.tensor([0, 3, 4, 1])
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tolist()
    points = pinwheel(arm, 5, 0.3, 0.1, 0.2, torch.Generator().manual_seed(5))
    for k, (first, second), point in zip(arm.tolist(), noise, points.tolist(), strict=True):
        radial, tangential = 0.3 * first + 1, 0.1 * second
        angle = 2 * math.pi * k / 5 + 0.2 * math.exp(radial)
        rotation = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        expected = [radial * rotation[0][j] + tangential * rotation[1][j] for j in (0, 1)]
        assert point == pytest.approx(expected, rel=1e-12)


def test_one_arm_turned_is_the_next() -> None:
    first, second = (pinwheel(torch.full((50,), k), source=torch.Generator().manual_seed(1)) for k in (1, 2))
    turn = 2 * math.pi / 5
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]).double()
    torch.testing.assert_close(first @ rotation, second)


def test_without_twist_the_arms_are_gaussian() -> None:
    points = pinwheel(torch.zeros(20_000).long(), twist=0.0, source=torch.Generator().manual_seed(1))
    torch.testing.assert_close(points.mean(0), torch.tensor([1.0, 0.0]).double(), rtol=0, atol=5 * 0.3 / 20_000**0.5)
    torch.testing.assert_close(points.T.cov(), torch.diag(torch.tensor([0.09, 0.01])).double(), rtol=0, atol=5e-3)


def test_published_training_set() -> None:
    """500 points of each of five arms, their mean at 0; the other sets are shifted alike and of another draw."""
    data = made()
    assert data.sizes == {"train": 2500, "val": 1000, "test": 2000}
    assert data.event_shape == (2,)
    train = data.observations("train")
    assert train.dtype == torch.float32
    assert data.arm("train").bincount().tolist() == [500] * 5
    assert train.mean(0).abs().max() < 1e-6
    assert 300 < int(data.arm("test").bincount().min()) < 400 < int(data.arm("test").bincount().max()) < 500
    unshifted = pinwheel(data.arm("train"), source=torch.Generator().manual_seed(0)).mean(0)
    assert unshifted.abs().max() < 0.05  # 4 standard errors: the arms are balanced, the radii are not
    assert not torch.equal(data.observations("val"), data.observations("test")[:1000])


def test_seeded_and_reproducible() -> None:
    first, again, other = made(), made(), made(seed=1)
    before = torch.get_rng_state()
    for split in ("train", "val", "test"):
        assert torch.equal(first.observations(split), again.observations(split))
        assert not torch.equal(first.observations(split), other.observations(split))
    assert torch.equal(first.fresh(30, "mmd"), again.fresh(30, "mmd"))
    assert not torch.equal(first.fresh(30, "mmd"), first.fresh(30, "other"))
    assert torch.equal(before, torch.get_rng_state())


def test_fresh_points_have_the_law_of_the_test_set() -> None:
    data = made(test_size=20_000)
    fresh, test = data.fresh(20_000, "law"), data.observations("test")
    assert fresh.dtype == torch.float32
    for moment in (lambda x: x, lambda x: x.square(), lambda x: x.prod(1, keepdim=True), lambda x: x**3):
        difference = moment(fresh).mean(0) - moment(test).mean(0)
        assert (difference.abs() < 5 * moment(test).std(0) * (2 / 20_000) ** 0.5).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_size": 0}, "train_size=0"),
        ({"arms": 0}, "arms=0"),
        ({"radial_scale": 0.0}, "data.radial_scale is 0.0"),
        ({"tangential_scale": math.inf}, "data.tangential_scale is inf"),
    ],
)
def test_mistakes_are_named(changes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Pinwheel(**changes)
