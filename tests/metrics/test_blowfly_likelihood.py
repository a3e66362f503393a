"""The exact likelihood of a population with a delay: normalised, and what Monte Carlo and finite differences give."""

import math

import pytest
import torch

from lightning_alws.metrics.blowfly import (
    gamma_rule,
    lag_posterior,
    log_likelihood,
    log_likelihood_by_lag,
    log_transition,
)
from lightning_alws.models.blowfly import BlowflySimulator
from lightning_alws.population import Population


def simulator(length: int = 5, lags: int = 3, **changes: float) -> BlowflySimulator:
    population = Population(**({"births": 6.0, "capacity": 800.0, "birth_noise": 0.5, "survival_noise": 0.7} | changes))
    return BlowflySimulator((length,), lags, population).double()


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 1.5, 3.0])
def test_gamma_rule_has_the_moments(scale: float) -> None:
    nodes, weights = gamma_rule(torch.tensor(scale).double(), min(0.1, 0.2 * scale))
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    assert float(weights @ nodes) == pytest.approx(1, abs=1e-6)
    assert float(weights @ nodes.square()) == pytest.approx(1 + scale**2, rel=1e-5)


@pytest.mark.parametrize(("noise", "birth_noise"), [(0.3, 0.5), (0.1, 1.2)])
def test_a_transition_is_a_density(noise: float, birth_noise: float) -> None:
    model = simulator(observation_noise=noise, birth_noise=birth_noise)
    log_x = torch.linspace(math.log(1.0), math.log(1e5), 600).double()
    many = torch.ones_like(log_x)
    with torch.no_grad():
        density = log_transition(model, 300 * many, 500 * many, log_x.exp()).exp() * log_x.exp()
    assert float(torch.trapezoid(density, log_x)) == pytest.approx(1, abs=1e-4)


def test_transition_is_what_monte_carlo_gives() -> None:
    model = simulator()
    with torch.no_grad():
        exact = float(log_transition(model, *(torch.tensor([v]).double() for v in (300.0, 500.0, 900.0))).exp())
        births = torch.distributions.Gamma(4.0, 4.0).sample((400_000,)).double()
        survival = torch.distributions.Gamma(0.7**-2, 0.7**-2).sample((400_000,)).double()
        state = model.state(torch.tensor(300.0).double(), torch.tensor(500.0).double(), births, survival)
        densities = torch.distributions.LogNormal(state.log(), 0.3).log_prob(torch.tensor(900.0)).exp()
    assert exact == pytest.approx(float(densities.mean()), abs=4 * float(densities.std()) / 400_000**0.5)


def test_likelihood_sums_over_the_lags_and_can_be_differentiated() -> None:
    model = simulator()
    x = model.simulate(1)[1][0]
    total = log_likelihood(model, x)
    by_lag = log_likelihood_by_lag(model, x)
    assert by_lag.shape == (3,)
    assert total.item() == pytest.approx((by_lag.exp() * model.log_lags.exp()).sum().log().item())
    posterior = lag_posterior(model, x)
    assert float(posterior.sum()) == pytest.approx(1)
    assert float((posterior / (by_lag + model.log_lags - total).exp() - 1).abs().max()) < 1e-9

    gradients = torch.autograd.grad(total, [*model.parameters()])
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                parameter.view(-1)[0] += step
                values.append(log_likelihood(model, x).item())
                parameter.view(-1)[0] -= step
        difference = (values[0] - values[1]) / 2e-4
        assert float(gradient.view(-1)[0]) == pytest.approx(difference, abs=1e-5, rel=1e-4), name


def test_posterior_finds_the_lag_of_a_simulated_series() -> None:
    model = simulator(40, 4, births=20.0, capacity=300.0, birth_noise=0.3, survival_noise=0.4, observation_noise=0.1)
    with torch.no_grad():
        model.lag_logits[2] = 30.0
        x = model.simulate(1)[1][0]
        model.lag_logits.zero_()
        assert float(lag_posterior(model, x)[2]) > 0.99
