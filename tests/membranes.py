"""A membrane for the tests, with its equations as they are printed, number by number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_alws.hodgkin_huxley import GATES, Constants, Membrane, State, draw_path

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
