"""Variational gradients where the posterior is Gaussian, and the best mean-field Gaussian known in closed form."""

from __future__ import annotations

import pytest
import torch
from models import LinearGaussian, flat_gradient
from torch.distributions import Normal

from lightning_alws.metrics.gradients import relative_error
from lightning_alws.metrics.variational import MeanField, fit_mean_field, importance_gradient


def posterior(model: LinearGaussian, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (B, D) and covariance (D, D) of z given x."""
    variance = (2 * model.log_scale).exp()
    precision = torch.eye(model.weight.shape[1], dtype=x.dtype) + model.weight.T @ model.weight / variance
    covariance = torch.linalg.inv(precision)
    return ((x - model.bias) @ model.weight / variance @ covariance).detach(), covariance.detach()


def standard(count: int, dims: int) -> MeanField:
    return MeanField(torch.zeros(count, dims, dtype=torch.float64), torch.zeros(count, dims, dtype=torch.float64))


def test_density_is_a_product_of_normals() -> None:
    q = MeanField(torch.randn(4, 2), torch.randn(4, 2))
    z = q.sample(3, 5)
    assert z.shape == (3, 5, 4, 2)
    reference = Normal(q.mean, q.log_scale.exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(q.log_prob(z), reference)


def test_fit_is_the_closed_form_of_a_gaussian_posterior() -> None:
    """arg min KL(q‖p) over mean-field q: the mean of p, and variances 1/Λ_dd of its precision Λ."""
    model = LinearGaussian(log_scale=0.0)
    x = model.sleep(6).x
    mean, covariance = posterior(model, x)
    q = fit_mean_field(model, x, standard(6, 2), particles=1, sets=50, steps=200)
    torch.testing.assert_close(q.mean, mean, rtol=0, atol=0.02)
    best = -0.5 * torch.linalg.inv(covariance).diagonal().log()
    torch.testing.assert_close(q.log_scale, best.expand(6, 2), rtol=0, atol=0.02)


@pytest.mark.parametrize("particles", [1, 10])
def test_fit_finds_a_posterior_that_factorises(particles: int) -> None:
    model = LinearGaussian(latent_dim=1, observed_dim=2)
    x = model.sleep(5).x
    mean, covariance = posterior(model, x)
    near = MeanField(mean + 0.2, 0.5 * covariance.log().expand(5, 1) + 0.3)
    q = fit_mean_field(model, x, near, particles, sets=10, steps=200)
    torch.testing.assert_close(q.mean, mean, rtol=0, atol=0.01)
    torch.testing.assert_close(q.log_scale, 0.5 * covariance.log().expand(5, 1), rtol=0, atol=0.02)


def test_gradient_with_the_posterior_as_proposal_is_exact_on_average() -> None:
    model = LinearGaussian(latent_dim=1, observed_dim=2)
    x = model.sleep(8).x
    mean, covariance = posterior(model, x)
    q = MeanField(mean, 0.5 * covariance.log().expand(8, 1))
    exact = torch.stack([flat_gradient(value, model) for value in model.log_marginal(x)])
    for particles in (1, 10):
        draws = torch.stack([importance_gradient(model, q, x, particles, 2000) for _ in range(4)])
        assert relative_error(draws, exact).rms < 0.05


def test_bias_falls_with_the_number_of_particles() -> None:
    """From a proposal that is too narrow, K = 1 averages over q, K = 100 nearly over the posterior."""
    model = LinearGaussian(log_scale=0.0)
    x = model.sleep(4).x
    mean, covariance = posterior(model, x)
    q = MeanField(mean + 0.3, 0.5 * covariance.diagonal().log().expand(4, 2) - 0.2)
    exact = torch.stack([flat_gradient(value, model) for value in model.log_marginal(x)])
    biases = []
    for particles in (1, 10, 100):
        draws = torch.stack([importance_gradient(model, q, x, particles, 4000) for _ in range(4)])
        biases.append(relative_error(draws, exact).bias)
    assert biases[0] > 2 * biases[1] > 4 * biases[2]
