"""Estimates of log p(x) against models whose marginal is known exactly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from models import LinearGaussian
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel
from lightning_alws.likelihoods import Bernoulli
from lightning_alws.metrics.likelihood import (
    LikelihoodEstimate,
    fit_encoder,
    importance_log_likelihood,
    monte_carlo_log_likelihood,
)


class Switches(LatentVariableModel):
    """Three fair bits z, five pixels x_d|z ~ Bernoulli(sigmoid((Wz)_d)); log p(x) is a sum over eight states."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double())
        self.states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3))).double()

    def sample_prior(self, count: int) -> Tensor:
        return torch.bernoulli(torch.full((count, 3), 0.5, dtype=torch.float64))

    def log_prior(self, z: Tensor) -> Tensor:
        return z.new_full((len(z),), -3 * math.log(2))

    def likelihood(self, z: Tensor) -> Bernoulli:
        return Bernoulli(z @ self.weight.T)


class Enumerated(Switches):
    """Its prior "samples" are the eight states in turn, so that Monte Carlo over whole rounds is exact."""

    position = 0

    def sample_prior(self, count: int) -> Tensor:
        rows = (self.position + torch.arange(count)) % 8
        self.position += count
        return self.states[rows]


class Posterior(nn.Module):
    """The exact posterior mean, and standard deviations ``scale`` times the exact marginal ones."""

    def __init__(self, model: LinearGaussian, scale: float = 1.0) -> None:
        super().__init__()
        self.model, self.scale = model, scale
        with torch.no_grad():
            precision = (-2 * model.log_scale).exp()
            identity = torch.eye(model.weight.shape[1], dtype=torch.float64)
            covariance = torch.linalg.inv(identity + precision * model.weight.T @ model.weight)
            self.gain = precision * model.weight @ covariance
            self.std = scale * covariance.diagonal().sqrt()

    def forward(self, x: Tensor) -> Tensor:
        mean = (x - self.model.bias) @ self.gain
        return torch.cat([mean, self.std.log().expand_as(mean)], dim=1)


def observations(model: LatentVariableModel, count: int = 20) -> Tensor:
    return model.likelihood(model.sample_prior(count)).sample()


def z_scores(estimate: LikelihoodEstimate, truth: Tensor, num_samples: int) -> Tensor:
    """Errors in standard errors: Var[log p̂] ≈ Var[w]/(S E[w]²) = 1/ESS − 1/S."""
    variance = 1 / estimate.effective_samples - 1 / num_samples
    return (estimate.log_likelihood - truth).abs() / variance.sqrt()


def test_prior_samples_find_the_marginal_of_a_linear_gaussian_model() -> None:
    model = LinearGaussian()
    x = observations(model)
    estimate = monte_carlo_log_likelihood(model, x, 50_000, 7_000)
    assert estimate.log_likelihood.dtype == torch.float64
    # 4.5 standard errors, for the largest of 20; the outliers are the ones with few effective samples.
    assert z_scores(estimate, model.log_marginal(x), 50_000).max() < 4.5
    assert (estimate.log_likelihood - model.log_marginal(x)).abs().median() < 0.03


@pytest.mark.parametrize(("scale", "widen"), [(1.0, 1.0), (1.0, 1.3), (0.7, 1.0)])
def test_importance_samples_find_the_marginal_of_a_linear_gaussian_model(scale: float, widen: float) -> None:
    model = LinearGaussian(latent_dim=4, observed_dim=6)
    x = observations(model)
    estimate = importance_log_likelihood(model, Posterior(model, scale), x, 4_000, 30_000, widen)
    assert z_scores(estimate, model.log_marginal(x), 4_000).max() < 4.5  # standard errors, for the largest of 20
    assert (estimate.log_likelihood - model.log_marginal(x)).abs().max() < 0.2


def test_importance_samples_count_for_more_than_those_of_the_prior() -> None:
    model = LinearGaussian(latent_dim=4, observed_dim=6)
    x = observations(model)
    prior = monte_carlo_log_likelihood(model, x, 2_000)
    proposal = importance_log_likelihood(model, Posterior(model), x, 2_000)
    assert (proposal.effective_samples > 3 * prior.effective_samples).all()


def test_a_fitted_encoder_approaches_the_posterior() -> None:
    model = LinearGaussian()
    encoder = nn.Linear(3, 4, dtype=torch.float64)  # the exact posterior is of this form, but for its correlation
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert fit_encoder(model, encoder, 600, 256, 2e-2) is encoder
    x = observations(model)
    torch.testing.assert_close(encoder(x), Posterior(model)(x), atol=0.1, rtol=0.1)
    estimate = importance_log_likelihood(model, encoder, x, 4_000)
    assert z_scores(estimate, model.log_marginal(x), 4_000).max() < 4.5
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_an_enumerated_prior_gives_the_exact_marginal() -> None:
    model = Enumerated()
    x = observations(Switches())
    log_prob = torch.stack([model.likelihood(model.states[[s]].expand(20, 3)).log_prob(x) for s in range(8)], dim=1)
    estimate = monte_carlo_log_likelihood(model, x, 16, 16)
    torch.testing.assert_close(estimate.log_likelihood, log_prob.logsumexp(1) - math.log(8))
    weights = log_prob.exp()
    torch.testing.assert_close(estimate.effective_samples, 2 * weights.sum(1).square() / weights.square().sum(1))


def test_prior_samples_find_the_marginal_of_discrete_latents() -> None:
    model = Switches()
    x = observations(model)
    exact = monte_carlo_log_likelihood(Enumerated(), x, 8).log_likelihood
    assert z_scores(monte_carlo_log_likelihood(model, x, 5_000), exact, 5_000).max() < 4.5


@pytest.mark.parametrize("chunk_size", [1, 5, 24])
def test_chunks_do_not_change_the_estimate(chunk_size: int) -> None:
    x = observations(Switches())
    whole, parts = (monte_carlo_log_likelihood(Enumerated(), x, 24, size) for size in (24, chunk_size))
    torch.testing.assert_close(parts.log_likelihood, whole.log_likelihood)
    torch.testing.assert_close(parts.effective_samples, whole.effective_samples)


def test_chunks_of_the_proposal_agree_within_monte_carlo_error() -> None:
    model = LinearGaussian()
    x = observations(model)
    for chunk_size in (1, 700):  # a chunk below the number of observations takes one latent for each
        estimate = importance_log_likelihood(model, Posterior(model), x, 500, chunk_size)
        assert z_scores(estimate, model.log_marginal(x), 500).max() < 4.5


def test_far_observations_neither_overflow_nor_vanish() -> None:
    model = LinearGaussian()
    x = torch.full((2, 3), 300.0, dtype=torch.float64)
    for estimate in (
        monte_carlo_log_likelihood(model, x, 100),
        importance_log_likelihood(model, Posterior(model), x, 100),
    ):
        assert estimate.log_likelihood.isfinite().all()
        assert (estimate.effective_samples >= 1 - 1e-9).all()


def test_senseless_numbers_are_refused() -> None:
    model, x = LinearGaussian(), torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(UserError, match="num_samples is 0"):
        monte_carlo_log_likelihood(model, x, 0)
    with pytest.raises(UserError, match="widen is -1"):
        importance_log_likelihood(model, Posterior(model), x, 10, widen=-1)
    with pytest.raises(UserError, match="must be 4 wide"):
        fit_encoder(model, nn.Linear(3, 6, dtype=torch.float64), 1)
