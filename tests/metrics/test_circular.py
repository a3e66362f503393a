"""Kuiper's distance against its definition and its law, winding numbers of known paths, angles of true Gabors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from datamodules.gabors import gabor
from lightning_alws.errors import UserError
from lightning_alws.metrics.circular import kuiper_distance, nearest, winding_number


def by_arcs(angle: Tensor, period: float) -> float:
    """The greatest difference over all arcs between the share of angles in an arc and its share of the circle.

    That is Kuiper's V (both are sups of F_n(b) − F_n(a) − (b − a)); arcs that begin at a point and end at one suffice.
    """
    u = [float(a) / period % 1 for a in angle]
    greatest = 0.0
    for start in u:
        for end in u:
            length = (end - start) % 1
            closed = sum((x - start) % 1 <= length for x in u) / len(u)
            inside = sum(0 < (x - start) % 1 < length for x in u) / len(u)
            greatest = max(greatest, closed - length, length - inside if length else 0.0)
    return greatest


@pytest.mark.parametrize("period", [math.pi, 2 * math.pi, 1.0])
@pytest.mark.parametrize("count", [2, 7, 40])
def test_kuiper_distance_is_the_worst_arc(count: int, period: float) -> None:
    angle = 3 * torch.randn(count, dtype=torch.float64)
    assert kuiper_distance(angle, period) == pytest.approx(by_arcs(angle, period), abs=1e-12)


def test_kuiper_distance_does_not_depend_on_where_the_circle_is_cut() -> None:
    angle = torch.randn(300, dtype=torch.float64)
    for shift in (0.3, 2.0, -5.0):
        assert kuiper_distance(angle + shift) == pytest.approx(kuiper_distance(angle), abs=1e-12)
    assert kuiper_distance(-angle) == pytest.approx(kuiper_distance(angle), abs=1e-12)


def test_kuiper_distance_of_known_laws() -> None:
    assert kuiper_distance(torch.arange(50).double() / 50, 1.0) == pytest.approx(1 / 50)  # the least there is
    assert kuiper_distance(torch.full((20,), 0.3), 1.0) == pytest.approx(1)
    # Density 1 + a cos 2πu: the distribution function is off by a sin(2πu)/(2π), so that V → a/π.
    u = torch.arange(20_000, dtype=torch.float64) / 20_000
    quantile = u
    for _ in range(50):  # Newton's iteration
        excess = u + 0.3 * (2 * math.pi * u).sin() / (2 * math.pi) - quantile
        u = u - excess / (1 + 0.3 * (2 * math.pi * u).cos())
    assert kuiper_distance(u, 1.0) == pytest.approx(0.3 / math.pi, abs=1e-3)


def test_kuiper_distance_of_uniform_draws_has_kuipers_law() -> None:
    """√n V has mean 1.2533 and 95 % point 1.747 as n → ∞."""
    scaled = torch.tensor([kuiper_distance(torch.rand(2000), 1.0) * 2000**0.5 for _ in range(1000)])
    assert float(scaled.mean()) == pytest.approx(1.2533, abs=0.03)
    assert float((scaled > 1.747).float().mean()) == pytest.approx(0.05, abs=0.025)


def test_kuiper_distance_of_what_is_not_finite() -> None:
    assert math.isnan(kuiper_distance(torch.tensor([0.1, math.nan])))


@pytest.mark.parametrize("turns", range(-3, 4))
@pytest.mark.parametrize("period", [math.pi, 2 * math.pi])
def test_winding_number_counts_turns(turns: int, period: float) -> None:
    path = torch.arange(200) / 200
    detour = 0.1 * (2 * math.pi * 3 * path).sin() + 0.004 * torch.randn(200)
    angle = period * (turns * path + detour + 0.37)
    assert winding_number(angle, period) == turns
    assert winding_number(angle.remainder(period), period) == turns
    assert winding_number(angle.flip(0), period) == -turns


def test_winding_number_of_twice_the_angle_on_twice_the_circle_is_the_same() -> None:
    angle = math.pi * torch.arange(100) / 100
    assert winding_number(angle, math.pi) == winding_number(2 * angle, 2 * math.pi) == 1


def test_winding_number_of_what_is_not_finite() -> None:
    assert winding_number(torch.tensor([0.1, 0.2, math.nan])) == 0


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_orientation_of_true_gabors_is_found_within_a_degree(noise: float) -> None:
    """By the nearest of 720; noise of 0.05 a pixel moves it by some 0.05 / 5.27 rad, half a degree, as it must."""
    theta = math.pi * torch.rand(500, dtype=torch.float64)
    angle = math.pi * torch.arange(720, dtype=torch.float64) / 720
    images = gabor(theta)
    index, distance = nearest(images + noise * torch.randn_like(images), gabor(angle))
    error = (angle[index] - theta + math.pi / 2).remainder(math.pi) - math.pi / 2
    if noise == 0:
        assert error.abs().max() <= math.pi / 1440 + 1e-9  # half a step, 0.125°
        assert distance.max() <= 5.5 * math.pi / 1440
    else:
        assert math.degrees(error.square().mean().sqrt()) < 1
        assert abs(error.mean()) < 4 * error.std() / 500**0.5


def test_nearest_is_that_of_a_loop() -> None:
    points, templates = torch.randn(6, 1, 3, 3), torch.randn(9, 1, 3, 3)
    index, distance = nearest(points, templates)
    for i, point in enumerate(points):
        distances = [float((point - template).square().sum()) ** 0.5 for template in templates]
        assert distances.index(min(distances)) == index[i]
        assert float(distance[i]) == pytest.approx(min(distances))


def test_senseless_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="one row of angles"):
        kuiper_distance(torch.zeros(0))
    with pytest.raises(UserError, match="one row of angles"):
        kuiper_distance(torch.zeros(3, 1))
    with pytest.raises(UserError, match="at least three angles"):
        winding_number(torch.zeros(2))
