"""The membrane: rates against the textbook, paths against an independent integrator, mistakes named."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from membranes import DOUBLE, START, TRUTH, constants, derivative, drawn, gates, steps, voltage
from scipy.integrate import solve_ivp

from lightning_alws.errors import UserError
from lightning_alws.hodgkin_huxley import (
    NAMES,
    NEGATIVE,
    Membrane,
    State,
    draw_path,
    exp_ratio,
    exp_ratio_slope,
)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_exp_ratio_and_its_slope_are_accurate_everywhere(dtype: torch.dtype) -> None:
    """Against 40 digits: mpmath's where installed, and it comes with torch through sympy."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 40
    sizes = [0.0, 1e-12, 1e-7, 1e-4, 0.01, 0.0299, 0.0301, 0.3, 1.0, 7.0, 30.0, 80.0, 200.0]
    points = [*sizes, *(-size for size in sizes)]
    x = torch.tensor(points, dtype=dtype)
    ratio, denominator = exp_ratio(x)
    slope = exp_ratio_slope(x, ratio, denominator)
    for point, ours, ours_slope in zip(x.tolist(), ratio.tolist(), slope.tolist(), strict=True):
        exact = mpmath.mpf(point)
        value = 1 if point == 0 else exact / mpmath.expm1(exact)
        tilt = -0.5 if point == 0 else (1 - exact - value) / mpmath.expm1(exact)
        tolerance = 10 * torch.finfo(dtype).eps
        assert ours == pytest.approx(float(value), rel=tolerance, abs=1e-37)
        # Just above the switch the closed form has lost a factor of 1/0.03 or so of its digits.
        assert ours_slope == pytest.approx(float(tilt), rel=30 * tolerance, abs=1e-37)


def test_the_path_without_noise_is_an_euler_loop() -> None:
    current = torch.cat([steps(40, 0.0), steps(360)])
    path = draw_path(constants(), voltage(), gates(), current, torch.zeros(400, 1, dtype=DOUBLE))[:, 0]
    state, reference = [START.voltage, *START.gates], []
    for given in current.tolist():
        state = [e + 0.05 * d for e, d in zip(state, derivative(state, given, TRUTH), strict=True)]
        reference.append(state[0])
    assert max(reference) > 30  # there are spikes in it
    torch.testing.assert_close(path, torch.tensor(reference, dtype=DOUBLE), rtol=1e-9, atol=1e-9)


def test_the_path_without_noise_nears_an_independent_integrator() -> None:
    """scipy's, on a constant current: the error of Euler's steps falls with their length."""
    end = 12.0
    solution = solve_ivp(
        lambda _, state: derivative(state, 10.0, TRUTH),
        (0, end),
        [START.voltage, *START.gates],
        rtol=1e-9,
        atol=1e-9,
        t_eval=np.linspace(0, end, 25)[1:],
    )
    assert solution.y[0].max() > 0  # at least one spike
    errors = []
    for step in (0.002, 0.001):
        count = round(end / step)
        path = draw_path(
            constants(step), voltage(), gates(), torch.full((count,), 10.0).double(), torch.zeros(count, 1).double()
        )[:, 0]
        errors.append(np.abs(path[count // 24 - 1 :: count // 24].numpy() - solution.y[0]).max())
    assert errors[1] < 0.55 * errors[0]
    assert errors[1] < 1.0


def test_noise_has_the_scale_of_the_voltage_noise() -> None:
    first = drawn(20_000, 1, torch.tensor([3.0]).double())[0]
    mean = START.voltage + 0.05 * derivative([START.voltage, *START.gates], 3.0, TRUTH)[0]
    assert float(first.mean()) == pytest.approx(mean, abs=0.003)
    assert float(first.std()) == pytest.approx(TRUTH.voltage_noise, rel=0.02)


def test_voltages_at_which_a_rate_is_nought_over_nought() -> None:
    """V − V_t = 13, 15, 40 exactly: finite, and between the neighbours' values."""
    for origin in (13.0, 15.0, 40.0):
        state = State(TRUTH.threshold + origin, 0.2, 0.3, 0.5)
        nearby = State(TRUTH.threshold + origin + 1e-6, 0.2, 0.3, 0.5)
        for dtype in (torch.float32, DOUBLE):
            paths = [
                draw_path(
                    constants(dtype=dtype),
                    voltage(at, dtype),
                    gates(at, dtype),
                    torch.zeros(3, dtype=dtype),
                    torch.zeros(3, 1, dtype=dtype),
                )
                for at in (state, nearby)
            ]
            torch.testing.assert_close(paths[0], paths[1], rtol=1e-5, atol=1e-4)


def test_mistakes_are_named() -> None:
    for name in NAMES:
        with pytest.raises(UserError, match=rf"given.{name} is .* {'negative' if name in NEGATIVE else 'positive'}"):
            Membrane(**{**vars(TRUTH), name: -vars(TRUTH)[name]}).check("given")
    with pytest.raises(UserError, match="given.h is 1.5; give a number between 0 and 1"):
        State(h=1.5).check("given")
    with pytest.raises(UserError, match="given.voltage is nan"):
        State(voltage=math.nan).check("given")
