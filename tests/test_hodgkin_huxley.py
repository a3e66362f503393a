"""The membrane: rates against the textbook, paths against an independent integrator, densities against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from lightning_alws import hodgkin_huxley
from lightning_alws.errors import UserError
from lightning_alws.hodgkin_huxley import (
    GATES,
    NAMES,
    NEGATIVE,
    Constants,
    Membrane,
    State,
    draw_path,
    exp_ratio,
    exp_ratio_slope,
    log_density,
)

DOUBLE = torch.float64
TRUTH = Membrane()
START = State(-63.0, 0.2, 0.3, 0.5)


def textbook_rates(v: float) -> dict[str, tuple[float, float]]:
    """α and β of each gate as they are printed, v = V − V_t."""
    return {
        "m": (
            -0.32 * (v - 13) / (math.exp(-(v - 13) / 4) - 1),
            0.28 * (v - 40) / (math.exp((v - 40) / 5) - 1),
        ),
        "n": (-0.032 * (v - 15) / (math.exp(-(v - 15) / 5) - 1), 0.5 * math.exp(-(v - 10) / 40)),
        "h": (0.128 * math.exp(-(v - 17) / 18), 4 / (math.exp(-(v - 40) / 5) + 1)),
    }


def derivative(state: list[float], current: float, membrane: Membrane) -> list[float]:
    """dV/dt, dm/dt, dn/dt, dh/dt."""
    voltage, m, n, h = state
    flow = (
        membrane.leak_conductance * (voltage - membrane.leak_reversal)
        + membrane.sodium_conductance * m**3 * h * (voltage - membrane.sodium_reversal)
        + membrane.potassium_conductance * n**4 * (voltage - membrane.potassium_reversal)
    )
    rates = textbook_rates(voltage - membrane.threshold)
    moving = [rates[g][0] * (1 - e) - rates[g][1] * e for g, e in zip(GATES, (m, n, h), strict=True)]
    return [(current - flow) / membrane.capacitance, *moving]


def plain_log_density(
    values: dict[str, float], start: list[float], current: Tensor, path: Tensor, step: float = 0.05
) -> Tensor:
    """log p of paths (T, N) by a loop over numbers."""
    membrane = Membrane(**values)
    results = []
    for column in path.T.tolist():
        state, total = list(start), 0.0
        for given, following in zip(current.tolist(), column, strict=True):
            moved = [e + step * d for e, d in zip(state, derivative(state, given, membrane), strict=True)]
            error = (following - moved[0]) / membrane.voltage_noise
            total += -0.5 * error**2 - math.log(membrane.voltage_noise) - 0.5 * math.log(2 * math.pi)
            state = [following, *moved[1:]]
        results.append(total)
    return torch.tensor(results, dtype=DOUBLE)


def constants(step: float = 0.05, dtype: torch.dtype = DOUBLE, membrane: Membrane = TRUTH) -> Constants:
    return Constants.of_membrane(membrane, step, dtype)


def gates(state: State = START, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.tensor(state.gates, dtype=dtype)


def voltage(state: State = START, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.tensor(state.voltage, dtype=dtype)


def steps(count: int, level: float = 10.0) -> Tensor:
    return level + 2 * torch.randn(count, dtype=DOUBLE)


def drawn(count: int, length: int, current: Tensor, membrane: Membrane = TRUTH, state: State = START) -> Tensor:
    noise = torch.randn(length, count, dtype=DOUBLE)
    return draw_path(constants(membrane=membrane), voltage(state), gates(state), current, noise)


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


@pytest.mark.parametrize("length", [1, 2, 31, 33, 34, 80])
def test_log_density_is_that_of_a_plain_loop(length: int) -> None:
    current = steps(length)
    path = drawn(3, length, current)
    ours = log_density(constants(), voltage(), gates(), current, path)
    reference = plain_log_density(vars(TRUTH), [START.voltage, *START.gates], current, path)
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-8)


def test_gradients_by_finite_differences_of_the_plain_loop() -> None:
    """Every constant, the threshold included, V_0 and each gate at first, over two spikes."""
    length = 300
    current = steps(length)
    path = drawn(2, length, current)
    assert float(path.max()) > 30
    weights = torch.tensor([1.0, -0.6], dtype=DOUBLE)
    leaves = {name: torch.tensor(value, dtype=DOUBLE, requires_grad=True) for name, value in vars(TRUTH).items()}
    start = torch.tensor([START.voltage, *START.gates], dtype=DOUBLE, requires_grad=True)
    ours = log_density(Constants.of(leaves, 0.05), start[0], start[1:], current, path) @ weights
    ours.backward()

    def plain(values: dict[str, float], begin: list[float]) -> float:
        return float(plain_log_density(values, begin, current, path) @ weights)

    for name, value in vars(TRUTH).items():
        if name == "observation_noise":
            assert leaves[name].grad is None  # it is no part of p(z)
            continue
        step = 1e-5 * abs(value)
        above, below = (plain({**vars(TRUTH), name: value + side * step}, start.tolist()) for side in (1, -1))
        assert float(leaves[name].grad) == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-3), name
    for place, value in enumerate([START.voltage, *START.gates]):
        step = 1e-5 * max(1.0, abs(value))
        begins = [start.tolist() for _ in range(2)]
        begins[0][place] += step
        begins[1][place] -= step
        above, below = (plain(vars(TRUTH), begin) for begin in begins)
        assert float(start.grad[place]) == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-3), place


def test_gradients_where_a_rate_is_nought_over_nought() -> None:
    path = TRUTH.threshold + torch.tensor([[13.0, 15.0], [15.0, 40.0], [40.0, 13.0], [20.0, 20.0]], dtype=DOUBLE)

    def density(threshold: Tensor, start: Tensor) -> Tensor:
        values = {name: torch.tensor(value, dtype=DOUBLE) for name, value in vars(TRUTH).items()}
        made = Constants.of({**values, "threshold": threshold}, 0.05)
        return log_density(made, start[0], start[1:], torch.zeros(4, dtype=DOUBLE), path) / 1e6

    inputs = (
        torch.tensor(TRUTH.threshold, dtype=DOUBLE, requires_grad=True),
        torch.tensor([TRUTH.threshold + 13.0, 0.2, 0.3, 0.5], dtype=DOUBLE, requires_grad=True),
    )
    assert torch.autograd.gradcheck(density, inputs, eps=1e-5, atol=1e-5, rtol=1e-4)


def test_float32_agrees_with_float64() -> None:
    length = 400
    current = steps(length)
    path = drawn(20, length, current)
    results = {}
    for dtype in (torch.float32, DOUBLE):
        leaves = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in vars(TRUTH).items()}
        start = torch.tensor([START.voltage, *START.gates], dtype=dtype, requires_grad=True)
        values = log_density(Constants.of(leaves, 0.05), start[0], start[1:], current.to(dtype), path.to(dtype))
        values.sum().backward()
        grads = [leaves[name].grad.double() for name in NAMES if name != "observation_noise"]
        results[dtype] = values.detach().double(), torch.stack([*grads, *start.grad.double()])
    torch.testing.assert_close(results[torch.float32][0], results[DOUBLE][0], rtol=1e-4, atol=0.02)
    torch.testing.assert_close(results[torch.float32][1], results[DOUBLE][1], rtol=0.01, atol=0.5)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    current = steps(50)
    path = drawn(4, 50, current)
    gradients = []
    for size in (3, 100):
        monkeypatch.setattr(hodgkin_huxley, "BLOCK", size)
        leaves = {name: torch.tensor(value, dtype=DOUBLE, requires_grad=True) for name, value in vars(TRUTH).items()}
        log_density(Constants.of(leaves, 0.05), voltage(), gates(), current, path).sum().backward()
        gradients.append(torch.stack([leaves[name].grad for name in NAMES if name != "observation_noise"]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_mistakes_are_named() -> None:
    for name in NAMES:
        with pytest.raises(UserError, match=rf"given.{name} is .* {'negative' if name in NEGATIVE else 'positive'}"):
            Membrane(**{**vars(TRUTH), name: -vars(TRUTH)[name]}).check("given")
    with pytest.raises(UserError, match="given.h is 1.5; give a number between 0 and 1"):
        State(h=1.5).check("given")
    with pytest.raises(UserError, match="given.voltage is nan"):
        State(voltage=math.nan).check("given")
