"""A linear-Gaussian state space model: its amortised gradient against the Kalman filter's, its parameters recovered."""

from __future__ import annotations

import functools

import pytest
import torch
from gradient_error import relative_error

from lightning_alws.errors import UserError
from lightning_alws.kernels import PolynomialKernel
from lightning_alws.learning import Learning
from lightning_alws.models import LinearDynamicsModel
from lightning_alws.models.linear_dynamics import LinearDynamics
from lightning_alws.regression import KernelRidge


def generator(steps: int = 4, observed_dim: int = 2) -> LinearDynamics:
    """Turning and decaying, with an initial state away from 0 and all scales different."""
    model = LinearDynamics((steps, observed_dim), 2)
    with torch.no_grad():
        model.dynamics.copy_(torch.tensor([[0.8, -0.4], [0.4, 0.8]]))
        model.loadings.copy_(torch.tensor([[1.0, 0.2], [-0.3, 0.8]]))
        model.initial_mean.copy_(torch.tensor([0.5, -0.3]))
        model.log_initial_scale.copy_(torch.tensor([-0.2, -0.5]))
        model.log_process_scale.copy_(torch.tensor([-0.5, -0.8]))
        model.log_observation_scale.copy_(torch.tensor([0.0, 0.3]))
    return model


def test_exact_likelihood_is_that_of_the_sleep_samples() -> None:
    """The Kalman filter's log p(x) against the mean of p(x|z) over paths of the prior."""
    model = generator(steps=3).double()
    x = model.sleep(5).x
    likelihood = model.likelihood(model.sample_prior(100_000))
    pairs = torch.stack([likelihood.log_prob(row.expand(100_000, 3, 2)) for row in x])
    estimate = torch.logsumexp(pairs, 1) - torch.tensor(100_000.0).log()
    torch.testing.assert_close(model.log_marginal(x), estimate, rtol=0, atol=0.1)


def test_every_parameter_gets_a_gradient() -> None:
    regression = functools.partial(KernelRidge, kernel=PolynomialKernel)
    module = LinearDynamicsModel(2, Learning(60, 20, regression, centring=1.0), (4, 3))
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    module.training_step(torch.randn(6, 4, 3), 0).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert {name.removeprefix("generative.") for name in gradients} == {
        "dynamics",
        "loadings",
        "initial_mean",
        "log_initial_scale",
        "log_process_scale",
        "log_observation_scale",
    }
    assert all(gradient is not None and gradient.abs().min() > 0 for gradient in gradients.values())


def short() -> LinearDynamics:
    """One latent and three steps, whose beginning is known well: little information is missing."""
    model = LinearDynamics((3, 2), 1)
    with torch.no_grad():
        model.dynamics.fill_(0.8)
        model.loadings.copy_(torch.tensor([[1.0], [-0.6]]))
        model.initial_mean.fill_(3.0)
        model.log_initial_scale.fill_(-0.7)
        model.log_process_scale.fill_(-0.3)
        model.log_observation_scale.copy_(torch.tensor([0.0, 0.2]))
    return model


@pytest.mark.slow
def test_gradient_error_falls_with_the_sleep_samples() -> None:
    model = short()
    few, many = (
        relative_error(model, model.log_marginal, PolynomialKernel, 3.0, count, 20, 1) for count in (1000, 4000)
    )
    assert many <= 0.1
    assert few > 1.5 * many


def test_numbers_of_latents_are_checked() -> None:
    with pytest.raises(UserError, match="latent_dim is 0"):
        LinearDynamicsModel(0, event_shape=(4, 3))
