"""Factor analysis: its densities against torch's, its amortised gradient against the exact one, its mistakes."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from gradient_error import relative_error
from torch.distributions import Independent, MultivariateNormal, Normal

from lightning_alws.errors import UserError
from lightning_alws.kernels import PolynomialKernel
from lightning_alws.learning import Learning
from lightning_alws.models import LinearGaussianModel
from lightning_alws.models.linear_gaussian import LinearGaussianGenerator
from lightning_alws.regression import KernelRidge


def generator(observed_dim: int = 4, latent_dim: int = 2, log_scale: float = -0.3) -> LinearGaussianGenerator:
    """With an offset, and a noise scale of each dimension."""
    model = LinearGaussianGenerator((observed_dim,), latent_dim)
    with torch.no_grad():
        model.offset.normal_()
        model.log_scale.copy_(log_scale + torch.linspace(-0.2, 0.2, observed_dim))
    return model


def test_log_joint_is_torchs() -> None:
    model = generator().double()
    sleep = model.sleep(7)
    z = sleep.z
    assert isinstance(z, torch.Tensor)
    reference = Independent(Normal(z @ model.loadings.T + model.offset, model.log_scale.exp()), 1)
    torch.testing.assert_close(model.likelihood(z).log_prob(sleep.x), reference.log_prob(sleep.x))
    torch.testing.assert_close(model.log_prior(z), Normal(0.0, 1.0).log_prob(z).sum(-1))


def test_log_marginal_integrates_the_joint() -> None:
    """Against the trapezoidal rule over the one latent."""
    model = generator(3, 1).double()
    x = model.sleep(5).x
    grid = torch.linspace(-9, 9, 2001, dtype=torch.float64)[:, None]
    log_prior = Normal(0.0, 1.0).log_prob(grid).sum(-1)
    conditional = Normal(grid @ model.loadings.T + model.offset, model.log_scale.exp())
    log_joint = conditional.log_prob(x[:, None]).sum(-1) + log_prior
    integral = torch.logsumexp(log_joint, dim=1) + (grid[1, 0] - grid[0, 0]).log()
    torch.testing.assert_close(model.log_marginal(x), integral, rtol=1e-9, atol=1e-9)


def test_samples_have_the_covariance_and_follow_the_seed() -> None:
    model = generator().double()
    x = model.sleep(40_000).x
    exact = MultivariateNormal(model.offset, model.covariance)
    torch.testing.assert_close(x.mean(0), exact.mean.detach(), rtol=0, atol=0.05)
    torch.testing.assert_close(x.T.cov(), exact.covariance_matrix.detach(), rtol=0, atol=0.15)
    torch.manual_seed(3)
    first = model.sleep(5)
    torch.manual_seed(3)
    second = model.sleep(5)
    assert torch.equal(first.x, second.x)


def test_every_parameter_gets_a_gradient() -> None:
    regression = functools.partial(KernelRidge, kernel=PolynomialKernel)
    module = LinearGaussianModel(2, Learning(40, 20, regression, centring=1.0), (4,))
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    module.training_step(torch.randn(6, 4), 0).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert set(gradients) == {"generative.loadings", "generative.offset", "generative.log_scale"}
    assert all(gradient is not None and gradient.abs().min() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("repeats", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_gradient_error_falls_with_the_sleep_samples(repeats: int) -> None:
    model = generator(log_scale=0.6)
    few, many = (
        relative_error(model, model.log_marginal, PolynomialKernel, 1.0, count, repeats) for count in (1000, 4000)
    )
    assert many <= 0.1
    assert few > 1.5 * many


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": None}, "no attribute 'event_shape'"),
        ({"event_shape": (2, 3)}, r"shape \(2, 3\).*flatten"),
        ({"event_shape": (3,), "latent_dim": 3}, "latent_dim is 3 for observations of 3"),
        ({"event_shape": (3,), "latent_dim": 0}, "latent_dim is 0"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LinearGaussianModel(**arguments)
