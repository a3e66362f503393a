"""The density of a voltage path against a plain loop: values, gradients, singular voltages, float32, blocks."""

from __future__ import annotations

import math

import pytest
import torch
from membranes import DOUBLE, START, TRUTH, constants, derivative, drawn, gates, steps, voltage
from torch import Tensor

from lightning_alws import voltage_density
from lightning_alws.hodgkin_huxley import NAMES, Constants, Membrane
from lightning_alws.voltage_density import log_density


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
        monkeypatch.setattr(voltage_density, "BLOCK", size)
        leaves = {name: torch.tensor(value, dtype=DOUBLE, requires_grad=True) for name, value in vars(TRUTH).items()}
        log_density(Constants.of(leaves, 0.05), voltage(), gates(), current, path).sum().backward()
        gradients.append(torch.stack([leaves[name].grad for name in NAMES if name != "observation_noise"]))
    torch.testing.assert_close(gradients[0], gradients[1])
