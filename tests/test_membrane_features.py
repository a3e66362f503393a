"""What a membrane did not foresee: against the Kalman filter where it is linear, and what it tells of the noise."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from membranes import DOUBLE, START, TRUTH, constants, drawn, gates, steps, voltage
from torch import nn

from lightning_alws.errors import UserError
from lightning_alws.hodgkin_huxley import State, draw_path, innovations
from lightning_alws.membrane_features import LAGS, WIDTHS, MembraneFeatures
from lightning_alws.models.hodgkin_huxley import HodgkinHuxley
from lightning_alws.trace_features import TraceFeatures

STEP = 0.05
PASSIVE = dataclasses.replace(
    TRUTH, sodium_conductance=1e-9, potassium_conductance=1e-9, leak_conductance=1.0, voltage_noise=0.5
)
LENGTH = 300


def attached(length: int = LENGTH, gain: float = 0.05) -> MembraneFeatures:
    features = MembraneFeatures((length,), gain)
    features.attach(HodgkinHuxley((length,), [10.0] * length, STEP, TRUTH))
    return features


def test_without_gain_the_path_without_noise_is_foreseen() -> None:
    current = steps(LENGTH)
    path = draw_path(constants(), voltage(), gates(), current, torch.zeros(LENGTH, 1, dtype=DOUBLE))
    x = path + torch.randn(LENGTH, 4, dtype=DOUBLE)
    torch.testing.assert_close(innovations(constants(), voltage(), gates(), current, x, 0.0), x - path)


def test_a_path_without_noise_holds_no_surprise_whatever_the_gain() -> None:
    current = steps(LENGTH)
    path = draw_path(constants(), voltage(), gates(), current, torch.zeros(LENGTH, 1, dtype=DOUBLE))
    for gain in (0.0, 0.3, 1.0):
        surprises = innovations(constants(), voltage(), gates(), current, path, gain)
        torch.testing.assert_close(surprises, torch.zeros_like(path))


def test_with_full_gain_each_step_begins_at_the_observation() -> None:
    """Of a membrane with a leak alone: V̂_{t+1} = x_t + Δt/C (g_l (E_l − x_t) + I_t)."""
    current, x = steps(LENGTH), -70 + torch.randn(LENGTH, 3, dtype=DOUBLE)
    surprises = innovations(constants(membrane=PASSIVE), voltage(), gates(), current, x, 1.0)
    foreseen = x[:-1] + STEP * (PASSIVE.leak_reversal - x[:-1] + current[1:, None])
    torch.testing.assert_close(surprises[1:], x[1:] - foreseen, rtol=0, atol=1e-5)


def test_with_the_filters_gain_they_are_white_and_have_the_filters_variance() -> None:
    """The steady state of the scalar Kalman filter: P = a²P(1 − G) + s_V², G = P/(P + s_x²), a = 1 − Δt g_l/C."""
    kept, variance = 1 - STEP, 1.0
    for _ in range(500):
        gain = variance / (variance + 1)
        variance = kept**2 * variance * (1 - gain) + 0.25
    count = 400
    current, state = steps(600), State(-60.0)
    path = drawn(count, 600, current, PASSIVE, state)
    x = path + torch.randn(600, count, dtype=DOUBLE)
    made = innovations(constants(membrane=PASSIVE), voltage(state), gates(state), current, x, gain)
    numbers = MembraneFeatures.whiteness(made[100:].T)
    expected = torch.zeros(1 + len(LAGS), dtype=DOUBLE)
    expected[0] = math.log(variance + 1)
    error = numbers[:, : 1 + len(LAGS)].std(0) / count**0.5
    assert ((numbers[:, : 1 + len(LAGS)].mean(0) - expected).abs() < 4 * error + 1e-3).all()


def test_they_tell_the_noise_of_the_voltage_where_the_trace_does_not() -> None:
    """d′ of s_V = 0.1 against 0.15 in the best linear statistic, within each kind of number: more than half as much
    again as in the trace's own roughness."""
    torch.manual_seed(0)
    current = torch.cat([steps(60, 0.0), steps(LENGTH - 60)]).float()
    model = HodgkinHuxley((LENGTH,), current.tolist(), STEP, TRUTH, START)
    features = MembraneFeatures((LENGTH,))
    features.attach(model)

    def rows(noise: float) -> torch.Tensor:
        membrane = dataclasses.replace(TRUTH, voltage_noise=noise)
        path = drawn(3000, LENGTH, current.double(), membrane).float()
        return features((path + torch.randn_like(path)).T).double()

    quiet, noisy = rows(0.1), rows(0.15)

    def told(part: slice) -> float:
        difference = noisy[:, part].mean(0) - quiet[:, part].mean(0)
        pooled = 0.5 * (torch.cov(quiet[:, part].T) + torch.cov(noisy[:, part].T))
        return math.sqrt(float(difference @ torch.linalg.lstsq(pooled, difference).solution))

    whiteness = 1 + len(LAGS) + len(WIDTHS)
    own = len(TraceFeatures((LENGTH,))(torch.zeros(1, LENGTH))[0])
    roughness = slice(LENGTH // 20 + 48, own)
    assert told(slice(own, own + whiteness)) > 1.5 * told(roughness)


def test_they_follow_the_model_as_it_stands_and_belong_to_no_kernel() -> None:
    features = attached()
    x = TRUTH.threshold + torch.randn(2, LENGTH)
    before = features(x)
    assert before.shape == (2, LENGTH // 20 + 48 + 7 + 10 + 1 + len(LAGS) + len(WIDTHS))
    assert not before.requires_grad
    assert not list(features.parameters())
    with torch.no_grad():
        features.model.log_capacitance.add_(0.5)  # type: ignore[union-attr, operator]
    assert not torch.equal(features(x)[:, -10:], before[:, -10:])


def test_a_short_trace_has_fewer_widths() -> None:
    features = attached(70)
    assert features(TRUTH.threshold + torch.randn(2, 70)).shape == (2, 70 // 20 + 48 + 7 + 10 + 1 + len(LAGS) + 6)


def test_a_membrane_that_runs_away_gives_numbers_all_the_same() -> None:
    features = attached()
    x = -1e4 + torch.randn(2, LENGTH)
    assert features(x).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": (59,)}, "T ≥ 60"),
        ({"event_shape": (LENGTH,), "gain": 1.5}, "gain=1.5"),
        ({"event_shape": (LENGTH,), "gain": -0.1}, "gain=-0.1"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        MembraneFeatures(**arguments)


def test_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="the model is a Linear"):
        MembraneFeatures((LENGTH,)).attach(nn.Linear(1, 1))
