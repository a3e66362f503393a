"""AL-P: gradients against their definition, and that nothing but the sleep objective is at fault."""

from __future__ import annotations

import functools

import pytest
import torch
from image_methods import ENCODER, SMALL, built, images
from models import LearntPrior, LinearGaussian, flat_gradient
from torch import Tensor

from lightning_alws.baselines import ParticleLearning
from lightning_alws.baselines.al_p import Sampler, particle_expectation, sampler_error
from lightning_alws.errors import UserError
from lightning_alws.networks import MLPFeatures
from lightning_alws.priors import GaussianMixturePrior


def made_sampler(event_shape: tuple[int, ...] = (3,), latent_dim: int = 2) -> Sampler:
    torch.manual_seed(0)
    return Sampler(MLPFeatures(event_shape, [], 5), event_shape, latent_dim, 32).double()


def test_samples_depend_on_the_observation_and_on_the_noise() -> None:
    sampler, x = made_sampler(), torch.randn(4, 3, dtype=torch.float64)
    z = sampler(x, 5)
    assert z.shape == (5, 4, 2)
    assert len(z.flatten(0, 1).unique(dim=0)) == 20
    torch.manual_seed(1)
    first = sampler(x, 2)
    torch.manual_seed(1)
    assert not torch.equal(first, sampler(x + 1, 2))


def test_the_models_gradient_is_that_of_the_definition() -> None:
    """∇_W (1/M) Σ_m log N(x; W z_m + b, σ²I) = (1/M) Σ_m (x − W z_m − b) z_mᵀ/σ², written out."""
    model, x = LinearGaussian(), torch.randn(4, 3, dtype=torch.float64)
    z = torch.randn(5, 4, 2, dtype=torch.float64)
    weight, bias, log_scale = torch.autograd.grad(
        particle_expectation(model, z, x).sum(), [model.weight, model.bias, model.log_scale]
    )
    with torch.no_grad():
        residual = x - z @ model.weight.T - model.bias
        precision = (-2 * model.log_scale).exp()
        torch.testing.assert_close(weight, precision * torch.einsum("mbd,mbk->dk", residual, z) / 5)
        torch.testing.assert_close(bias, precision * residual.sum((0, 1)) / 5)
        torch.testing.assert_close(log_scale, (precision * residual.square() - 1).sum() / 5)


def test_a_learnt_prior_is_learnt() -> None:
    model = LearntPrior()
    z, x = torch.randn(2, 5, 1, dtype=torch.float64), torch.ones(5, 4, dtype=torch.float64)
    gradient = torch.autograd.grad(particle_expectation(model, z, x).sum(), model.prior_mean)[0]
    torch.testing.assert_close(gradient, (z - model.prior_mean).sum((0, 1)).detach() / 2)


def test_the_sleep_objective_trains_the_sampler_alone() -> None:
    model, sampler = LinearGaussian(), made_sampler()
    torch.manual_seed(2)
    error = sampler_error(model, sampler, 30, 2)
    error.backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all((parameter.grad != 0).any() for parameter in sampler.parameters())
    torch.manual_seed(2)
    sleep = model.sleep(30)
    z = sampler(sleep.x, 2)
    predicted = torch.stack([model.likelihood(one).log_prob(sleep.x) for one in z]).mean(0)
    torch.testing.assert_close(error, (predicted - model.likelihood(sleep.z).log_prob(sleep.x)).square().mean())


def test_the_loss_gives_each_part_its_own_gradient() -> None:
    """The model's is that of −mean Ĵ(x*) alone, the sampler's that of the sleep objective alone."""
    module, x = built("al_p"), images(7)
    torch.manual_seed(3)
    module.training_step(x, 0).backward()
    torch.manual_seed(3)
    error = sampler_error(module.generative, module.sampler, module.sleep_samples, module.particles)
    with torch.no_grad():
        z = module.sampler(x, module.particles)
    objective = torch.stack([module.generative.likelihood(one).log_prob(x) for one in z]).mean()
    for part, value in ((module.sampler, error), (module.generative, -objective)):
        taken = torch.cat([parameter.grad.flatten() for parameter in part.parameters()])
        torch.testing.assert_close(taken, flat_gradient(value, part))


class ExactPosterior:
    """Draws from p(z|x) of a linear Gaussian model, in the sampler's place."""

    def __init__(self, model: LinearGaussian) -> None:
        self.model = model

    def __call__(self, x: Tensor, particles: int) -> Tensor:
        weight, precision = self.model.weight.detach(), (-2 * self.model.log_scale.detach()).exp()
        covariance = torch.linalg.inv(torch.eye(weight.shape[1], dtype=weight.dtype) + precision * weight.T @ weight)
        mean = precision * (x - self.model.bias.detach()) @ weight @ covariance
        noise = torch.randn(particles, *mean.shape, dtype=mean.dtype)
        return mean + noise @ torch.linalg.cholesky(covariance).T


def test_with_a_perfect_sampler_the_gradient_is_unbiased() -> None:
    model = LinearGaussian()
    x = model.sleep(3).x
    draws = ExactPosterior(model)
    estimates = []
    for _ in range(100):
        with torch.no_grad():
            z = draws(x, 100)
        estimates.append(torch.stack([flat_gradient(value, model) for value in particle_expectation(model, z, x)]))
    exact = torch.stack([flat_gradient(value, model) for value in model.log_marginal(x)])
    drawn = torch.stack(estimates)
    error = drawn.std(0) / len(drawn) ** 0.5
    assert ((drawn.mean(0) - exact).abs() < 4.5 * error).all()
    assert float(error.square().sum().sqrt() / exact.square().sum().sqrt()) < 0.03  # otherwise anything would pass


def test_the_objective_is_met_by_a_sampler_with_another_gradient() -> None:
    """One z for each x, with log p(x|z) = E[log p(x|z')|x] exactly: J is met on the dot, and ∇J is not."""
    model = LinearGaussian(latent_dim=1)
    x = model.sleep(200).x
    posterior = ExactPosterior(model)
    with torch.no_grad():
        drawn = posterior(x, 4_000)
        level = particle_expectation(model, drawn, x)
        weight, bias, variance = model.weight[:, 0], model.bias, (2 * model.log_scale).exp()
        centre = (x - bias) @ weight / weight.square().sum()  # of the parabola log p(x|z) in z
        highest = particle_expectation(model, centre[None, :, None], x)
        z = centre + ((highest - level) * 2 * variance / weight.square().sum()).sqrt()
        torch.testing.assert_close(particle_expectation(model, z[None, :, None], x), level)
    matched = flat_gradient(particle_expectation(model, z[None, :, None], x).mean(), model)
    exact = flat_gradient(model.log_marginal(x).mean(), model)
    assert float((matched - exact).norm() / flat_gradient(model.log_marginal(x)[0], model).norm()) > 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sleep_samples": 0}, "model.sleep_samples is 0"),
        ({"particles": 0}, "model.particles is 0"),
        ({"hidden": 0}, "model.hidden is 0"),
        ({"prior": functools.partial(GaussianMixturePrior, components=2)}, "GaussianMixturePrior"),
    ],
)
def test_settings_that_make_no_sense_are_named(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ParticleLearning(**({"encoder": ENCODER, **SMALL} | change))
