"""The filter's likelihood of a voltage trace: exact for one step, beside simulation for a few, and its maximum."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from lightning_alws.hodgkin_huxley import NAMES, Constants, Membrane, State, draw_path, signs
from lightning_alws.metrics.kalman_voltage import TraceLikelihood, log_likelihood

TRUTH = Membrane()
START = State(-45.0, 0.3, 0.3, 0.5)
STEP = 0.05


def constants(membrane: Membrane = TRUTH) -> torch.Tensor:
    return torch.tensor([[*vars(membrane).values()]], dtype=torch.float64)


def start() -> torch.Tensor:
    return torch.tensor([[START.voltage, *START.gates]], dtype=torch.float64)


def paths(count: int, current: torch.Tensor, membrane: Membrane = TRUTH) -> torch.Tensor:
    """Simulated paths (T, count) in float64."""
    noise = torch.randn(len(current), count, dtype=torch.float64)
    made = Constants.of_membrane(membrane, STEP)
    return draw_path(made, start()[0, 0], start()[0, 1:], current, noise)


@pytest.mark.parametrize(("length", "noise"), [(1, 0.1), (3, 0.1), (6, 0.05)])
def test_it_is_the_mean_density_over_simulated_paths(length: int, noise: float) -> None:
    """To four standard errors of the simulation, at most 0.02 nats.

    The first step is exact. The next ones are on the way up of a spike, which makes a spread of 0.1 mV one of 0.6 mV
    in six steps; there the linearisation is off by some 0.005 nats, and by a quarter of it at half the noise.
    """
    current = torch.full((length,), 10.0, dtype=torch.float64)
    membrane = dataclasses.replace(TRUTH, voltage_noise=noise)
    z = paths(200_000, current, membrane)
    x = z[:, 0] + torch.randn(length, dtype=torch.float64)
    log_densities = -0.5 * ((x[:, None] - z).square() + math.log(2 * math.pi)).sum(0)
    simulated = float(log_densities.logsumexp(0)) - math.log(z.shape[1])
    error = float(log_densities.softmax(0).std()) * z.shape[1] ** 0.5
    ours = float(log_likelihood(constants(membrane), start(), current, x, STEP))
    assert error < 0.005
    assert ours == pytest.approx(simulated, abs=4 * error)


def test_it_is_exact_in_the_limit_of_small_noise() -> None:
    """A path is then normal, with the mean and covariance of simulated ones: wrong derivatives would show."""
    length, noise = 40, 1e-4
    current = torch.full((length,), 10.0, dtype=torch.float64)
    membrane = dataclasses.replace(TRUTH, voltage_noise=noise, observation_noise=noise)
    z = paths(200_000, current, membrane)
    covariance = z.cov() + noise**2 * torch.eye(length, dtype=torch.float64)
    x = z[:, :3].T + noise * torch.randn(3, length, dtype=torch.float64)
    simulated = torch.distributions.MultivariateNormal(z.mean(1), covariance).log_prob(x)
    ours = torch.cat([log_likelihood(constants(membrane), start(), current, row, STEP) for row in x])
    torch.testing.assert_close(ours, simulated, rtol=0, atol=0.1)


def test_membranes_are_independent() -> None:
    current = torch.full((20,), 10.0, dtype=torch.float64)
    x = paths(1, current)[:, 0]
    both = torch.cat([constants(), constants(Membrane(capacitance=1.3))])
    together = log_likelihood(both, start().expand(2, 4), current, x, STEP)
    apart = [log_likelihood(row[None], start(), current, x, STEP) for row in both]
    torch.testing.assert_close(together, torch.cat(apart))


@pytest.mark.slow
def test_the_climb_ends_where_the_slope_is_nought_and_the_profile_falls_from_there() -> None:
    """The two noises and the capacitance alone are free, as in the rest the trace is short."""
    current = torch.full((80,), 10.0, dtype=torch.float64)
    path = paths(1, current)[:, 0]
    x = path + torch.randn(80, dtype=torch.float64)
    likelihood = TraceLikelihood(current, x, STEP, start()[0, 1:])
    begin = likelihood.point(vars(TRUTH), START.voltage)
    torch.testing.assert_close(begin[:10].exp() * torch.tensor(signs(), dtype=torch.float64), constants()[0])
    fixed = torch.tensor([[name not in ("observation_noise", "capacitance") for name in (*NAMES, "voltage")]])
    values, best = likelihood.climb(begin[None], fixed)
    assert float(values) > float(likelihood(begin[None]))
    slopes = likelihood.gradients(best)[0]
    assert float(slopes[~fixed[0]].abs().max()) < 0.01
    assert torch.equal(best[fixed], begin[None][fixed])
    information = likelihood.information(best[0])
    assert (torch.linalg.eigvalsh(information) > 0).all()
