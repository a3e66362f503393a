"""What is measured of an oscillator, on one whose period, diffusion and spread are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_alws.metrics.oscillation import free_running, mean_period, measure, one_step_spread

PERIOD, DIFFUSION = 9.0, 0.15


@pytest.fixture
def phases() -> Tensor:
    """A random walk with drift, (1500, 200)."""
    torch.manual_seed(0)
    return 2 * math.pi * torch.rand(1500, 1) + (2 * math.pi / PERIOD + DIFFUSION * torch.randn(1500, 200)).cumsum(1)


@pytest.mark.parametrize("turn", [1, -1])
def test_period_and_diffusion_do_not_depend_on_the_coordinates(phases: Tensor, turn: int) -> None:
    angle = turn * phases
    circle = torch.stack([angle.cos(), angle.sin()], dim=2)
    bent = torch.tanh(0.8 * circle @ torch.tensor([[1.0, 0.3], [0.2, 0.6]]) + torch.tensor([0.4, -0.2]))
    for paths in (circle, bent):
        period, diffusion = free_running(paths)
        assert period == pytest.approx(PERIOD, rel=0.01)
        assert diffusion == pytest.approx(DIFFUSION, rel=0.08)


def test_mean_period_of_few_steps(phases: Tensor) -> None:
    centre = torch.tensor([2.0, -1.0])
    angle = phases[:, :30]
    assert mean_period(torch.stack([angle.cos(), angle.sin()], dim=2) + centre, centre) == pytest.approx(
        PERIOD, rel=0.01
    )


def test_what_does_not_turn_has_no_period() -> None:
    assert all(math.isnan(value) for value in free_running(torch.zeros(5, 120, 2)))


def test_spread_is_the_standard_deviation_of_what_is_seen() -> None:
    torch.manual_seed(0)
    matrix = torch.tensor([[1.0, 0.5], [0.0, 2.0], [1.0, 1.0]])
    spread = one_step_spread(
        torch.randn(20_000, 2), lambda z: 0.5 * z + 0.3 * torch.randn_like(z), lambda z: z @ matrix.T
    )
    assert spread == pytest.approx(0.3 * math.sqrt(float(matrix.square().sum()) / 3), rel=0.02)


def test_all_three_together(phases: Tensor) -> None:
    paths = torch.stack([phases.cos(), phases.sin()], dim=2)
    found = measure(paths, lambda z: z + 0.2 * torch.randn_like(z), lambda z: z[:, :1])
    assert found.period == pytest.approx(PERIOD, rel=0.01)
    assert found.spread == pytest.approx(0.2, rel=0.02)
