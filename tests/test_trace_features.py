"""Statistics of a voltage trace: their shape, what each kind is of, and mistakes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_alws.errors import UserError
from lightning_alws.trace_features import LAGS, WIDTHS, TraceFeatures


def test_there_is_one_row_for_each_trace_and_no_gradient() -> None:
    features = TraceFeatures((1000,), window=20, bins=16)
    x = (10 * torch.randn(3, 1000) - 50).requires_grad_()
    rows = features(x)
    assert rows.shape == (3, 50 + 3 * 16 + len(LAGS) + 2 * len(WIDTHS))
    assert not rows.requires_grad
    torch.testing.assert_close(rows[1:2], features(x[1:2]))
    assert not list(features.parameters())


def test_times_are_means_of_windows() -> None:
    x = torch.randn(2, 103)
    torch.testing.assert_close(TraceFeatures((103,), window=10)(x)[:, :10], x[:, :100].view(2, 10, 10).mean(2))


def test_the_phase_plane_of_a_ramp() -> None:
    """Rising by 0.25 mV a step, 2 mV over two smoothed steps, at every voltage it passes; it never falls."""
    x = torch.linspace(-90, 60, 601)[None]
    share, rise, fall = TraceFeatures((601,), bins=16).phase_plane(x).unflatten(1, (3, 16))[0]
    assert torch.equal(fall, torch.zeros(16))
    torch.testing.assert_close(rise, 2 * share, rtol=1e-4, atol=1e-6)
    inside = share[3:-3]
    torch.testing.assert_close(inside, inside.mean().expand(10), rtol=3e-3, atol=0)


def test_roughness_of_white_noise() -> None:
    rows = TraceFeatures.roughness(3 * torch.randn(5, 20_000))
    torch.testing.assert_close(rows[:, : len(LAGS)], torch.full((5, len(LAGS)), math.log(18)), rtol=0, atol=0.1)


def test_later_spikes_leave_the_phase_plane_as_it_is() -> None:
    trace = torch.full((400,), -65.0)
    trace[100:140] += 100 * torch.hann_window(40)
    features = TraceFeatures((400,))
    moved = features.phase_plane(torch.stack([trace, trace.roll(80)]))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": (1, 8, 8)}, r"shape \(1, 8, 8\), but TraceFeatures takes"),
        ({"event_shape": (59,)}, "T ≥ 60"),
        ({"event_shape": (100,), "window": 0}, "window=0"),
        ({"event_shape": (100,), "bins": 1}, "bins=1"),
        ({"event_shape": (100,), "lowest": 70.0}, "highest voltage above the lowest"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TraceFeatures(**arguments)
