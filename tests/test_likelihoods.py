"""Every likelihood against torch.distributions, and the plug-in expectation against the sum over pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_alws.likelihoods import Bernoulli, Gaussian, Likelihood

N, B, EVENT = 6, 4, (1, 2, 3)


def bernoulli() -> tuple[Likelihood, torch.distributions.Distribution, Tensor]:
    logits = torch.randn(N, *EVENT, dtype=torch.float64)
    return Bernoulli(logits), torch.distributions.Bernoulli(logits=logits), torch.rand(B, *EVENT).round().double()


def gaussian() -> tuple[Likelihood, torch.distributions.Distribution, Tensor]:
    mean, log_scale = torch.randn(N, *EVENT, dtype=torch.float64), torch.tensor(-0.7, dtype=torch.float64)
    x = torch.randn(B, *EVENT, dtype=torch.float64)
    return Gaussian(mean, log_scale), torch.distributions.Normal(mean, log_scale.exp()), x


FAMILIES = pytest.mark.parametrize("family", [bernoulli, gaussian])


@FAMILIES
def test_log_prob_is_that_of_torch_distributions(family) -> None:
    likelihood, reference, _ = family()
    x = likelihood.sample()
    torch.testing.assert_close(likelihood.log_prob(x), reference.log_prob(x).flatten(1).sum(1), rtol=1e-12, atol=1e-12)


@FAMILIES
def test_expectation_is_the_weighted_sum_over_pairs(family) -> None:
    likelihood, reference, x = family()
    weights = torch.randn(N, B, dtype=torch.float64)  # signed, and not summing to one
    pairs = torch.stack([reference.log_prob(one).flatten(1).sum(1) for one in x], dim=1)
    torch.testing.assert_close(likelihood.expectation(weights, x), (weights * pairs).sum(0), rtol=1e-11, atol=1e-11)


@FAMILIES
def test_mean_and_sample_have_the_moments_of_the_distribution(family) -> None:
    likelihood, reference, _ = family()
    torch.testing.assert_close(likelihood.mean, reference.mean)
    draws = torch.stack([likelihood.sample() for _ in range(4000)])
    standard_error = reference.stddev / 4000**0.5
    assert ((draws.mean(0) - reference.mean).abs() < 5 * standard_error + 1e-12).all()


@FAMILIES
def test_log_normaliser_generates_the_mean_statistics(family) -> None:
    """∂Ψ/∂η = E[S(x)]: checked through Ψ's gradient in the natural parameters' own coordinates, by Monte Carlo."""
    likelihood, _, _ = family()
    draws = torch.stack([likelihood.sufficient_statistics(likelihood.sample()) for _ in range(4000)])
    parameters = likelihood.natural_parameters
    mean_statistic = draws.mean(0)
    # d/dt Ψ(η + t v) at t = 0 for v = η (a direction each family can move along without leaving its form is scale).
    inner = (parameters * mean_statistic).sum(1)
    exact = (parameters * draws).sum(-1)
    entropy = likelihood.log_normaliser - inner
    reference = -torch.stack([likelihood.log_prob(likelihood.sample()) for _ in range(4000)]).mean(0)
    assert (entropy - reference).abs().max() < 6 * exact.std(0).max() / 4000**0.5


@FAMILIES
def test_slices_and_detach(family) -> None:
    likelihood, _, _ = family()
    torch.testing.assert_close(likelihood[1:3].natural_parameters, likelihood.natural_parameters[1:3])
    torch.testing.assert_close(likelihood[1:3].log_normaliser, likelihood.log_normaliser[1:3])
    assert not likelihood.detach().natural_parameters.requires_grad


def test_gaussian_detach_reaches_the_shared_scale() -> None:
    log_scale = torch.zeros((), requires_grad=True)
    likelihood = Gaussian(torch.randn(N, 3), log_scale)
    assert likelihood.log_normaliser.requires_grad
    assert not likelihood.detach().log_normaliser.requires_grad


def test_gaussian_residual_parts_add_up() -> None:
    likelihood, _, x = gaussian()
    weights = torch.randn(N, B, dtype=torch.float64)
    pairs = (x[None] - likelihood.mean[:, None]).flatten(2).square().sum(2)
    torch.testing.assert_close(sum(likelihood.residual(weights, x)), (weights * pairs).sum(0), rtol=1e-11, atol=1e-11)


def test_varying_parameters_are_those_that_depend_on_the_latent() -> None:
    likelihood, _, _ = gaussian()
    assert likelihood.natural_parameters.shape[1] == likelihood.varying_parameters.shape[1] + 1
    assert (likelihood.varying_parameters.var(0) > 0).all()
    assert torch.all(likelihood.natural_parameters[:, -1] == likelihood.natural_parameters[0, -1])
