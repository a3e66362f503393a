"""The extended Kalman smoother: exact where the model is linear, near the true states where it bends, never a NaN."""

from __future__ import annotations

import pytest
import torch

from lightning_alws.errors import UserError
from lightning_alws.likelihoods import Bernoulli
from lightning_alws.models.linear_dynamics import LinearDynamics
from lightning_alws.models.neural_dynamics import NeuralDynamics
from lightning_alws.smoother import innovations, smoothed_states


@pytest.fixture
def linear() -> LinearDynamics:
    torch.manual_seed(0)
    model = LinearDynamics((6, 3)).double()
    with torch.no_grad():
        model.log_observation_scale.copy_(torch.tensor([-1.0, 0.0, 0.5]))
        model.log_process_scale.copy_(torch.tensor([-1.0, 0.3]))
        model.initial_mean.copy_(torch.tensor([1.0, -2.0]))
    return model


def test_a_linear_model_is_smoothed_exactly(linear: LinearDynamics) -> None:
    x = linear.sleep(4).x
    torch.testing.assert_close(smoothed_states(linear, x), linear.exact.smooth(x).mean, rtol=1e-8, atol=1e-8)


def test_innovations_are_what_the_noise_must_have_been(linear: LinearDynamics) -> None:
    x = linear.sleep(4).x
    states, q = smoothed_states(linear, x), linear.log_process_scale.exp()
    found = innovations(linear, x)
    torch.testing.assert_close(found[:, 1:], (states[:, 1:] - states[:, :-1] @ linear.dynamics.T) / q)
    torch.testing.assert_close(found[:, 0], (states[:, 0] - linear.initial_mean) / linear.log_initial_scale.exp())
    assert not found.requires_grad


def test_states_that_bend_are_found_where_noise_is_small() -> None:
    torch.manual_seed(0)
    model = NeuralDynamics((20, 10), process_scale=0.1, observation_scale=0.01).double()
    with torch.no_grad():
        for layer in (model.step[0], model.step[2], model.picture[0], model.picture[2]):
            layer.weight.mul_(2.0)  # type: ignore[operator, union-attr]
    z = model.sample_path(8, 20)
    x = model.emission(z).sample()
    error = (smoothed_states(model, x) - z).square().mean().sqrt()
    assert error < 0.25 * (z - z.mean((0, 1))).square().mean().sqrt()
    noise = (z[:, 1:].flatten(0, 1) - model.transition(z[:, :-1].flatten(0, 1)).mean) / 0.1
    found = innovations(model, x)[:, 1:].flatten(0, 1)
    assert torch.corrcoef(torch.stack([noise.flatten(), found.flatten()]).detach())[0, 1] > 0.9


def test_other_laws_are_named(linear: LinearDynamics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "emission", lambda z: Bernoulli(z))
    with pytest.raises(UserError, match=r"a Bernoulli is among the laws .*; set model\.innovations to 0"):
        innovations(linear, torch.zeros(1, 6, 3).double())


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e30])
def test_where_it_fails_it_gives_numbers(linear: LinearDynamics, value: float) -> None:
    x = linear.sleep(2).x
    x[0] = value
    found = innovations(linear, x)
    assert found.isfinite().all()
    assert found.abs().max() <= 10
