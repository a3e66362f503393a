"""A Gaussian process with noise: its densities against torch's, its amortised gradient against the exact one."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from gradient_error import relative_error
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from lightning_alws.errors import UserError
from lightning_alws.gaussian_process import Hyperparameters, log_marginal
from lightning_alws.kernels import PolynomialKernel
from lightning_alws.learning import Learning
from lightning_alws.models import GaussianProcessModel
from lightning_alws.models.gp_latent import GaussianProcessGenerator
from lightning_alws.regression import KernelRidge

INITIAL = Hyperparameters(1.7, 1.3, 0.4)
POINTS = 6


def generator(points: int = POINTS, initial: Hyperparameters = INITIAL) -> GaussianProcessGenerator:
    return GaussianProcessGenerator((points,), initial)


def covariance(points: int, values: Hyperparameters) -> Tensor:
    """K written out entry by entry."""
    entries = [
        [
            values.scale**2 * (2.718281828459045 ** (-((t - u) ** 2) / (2 * values.lengthscale**2)) + 1e-4 * (t == u))
            for t in range(points)
        ]
        for u in range(points)
    ]
    return torch.tensor(entries, dtype=torch.float64)


def test_log_joint_is_torchs() -> None:
    model = generator().double()
    sleep = model.sleep(7)
    z = sleep.z
    assert isinstance(z, Tensor)
    prior = MultivariateNormal(torch.zeros(POINTS).double(), covariance(POINTS, model.hyperparameters))
    torch.testing.assert_close(model.log_prior(z), prior.log_prob(z), rtol=1e-6, atol=1e-6)
    reference = Normal(z, model.log_noise.exp()).log_prob(sleep.x).sum(-1)
    torch.testing.assert_close(model.likelihood(z).log_prob(sleep.x), reference)
    torch.testing.assert_close(sleep.joint.log_joint, prior.log_prob(z) + reference, rtol=1e-6, atol=1e-6)


def test_log_prior_is_accurate_in_float32() -> None:
    """A smooth process on 20 points: the condition number of K is about 10⁵."""
    model = generator(20, Hyperparameters(3.0, 1.5, 0.5))
    z = model.sample_prior(50)
    in_float32 = model.log_prior(z)
    torch.testing.assert_close(in_float32.double(), model.double().log_prior(z.double()), rtol=1e-5, atol=1e-3)


def test_samples_have_the_covariance_and_follow_the_seed() -> None:
    model = generator()
    z = model.sample_prior(40_000)
    assert not z.requires_grad
    torch.testing.assert_close(z.T.cov().double(), covariance(POINTS, INITIAL), rtol=0, atol=0.06)
    torch.manual_seed(3)
    first = model.sleep(5)
    torch.manual_seed(3)
    second = model.sleep(5)
    assert torch.equal(first.x, second.x)


def module(**settings: Any) -> GaussianProcessModel:
    regression = functools.partial(KernelRidge, kernel=PolynomialKernel, ridge=0.1)
    made = GaussianProcessModel(Learning(regression=regression, **settings), INITIAL, (POINTS,))
    made.log = lambda *args, **options: None  # type: ignore[method-assign]
    return made


def test_every_parameter_gets_a_gradient() -> None:
    learner = module(sleep_samples=60, held_out=20, centring=1.0)
    learner.training_step(torch.randn(6, POINTS), 0).backward()
    gradients = {name: p.grad for name, p in learner.named_parameters() if p.requires_grad}
    assert set(gradients) == {f"generative.log_{name}" for name in ("lengthscale", "scale", "noise")}
    assert all(gradient is not None and gradient != 0 for gradient in gradients.values())


def test_posterior_mean_nears_the_exact_one() -> None:
    x = generator().sleep(30).x
    exact = INITIAL.posterior_mean(x)
    errors = [float((module(sleep_samples=count).posterior_mean(x) - exact).square().mean()) for count in (200, 2000)]
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 0.005 * float(exact.square().mean())


@pytest.mark.slow
def test_gradient_error_falls_with_the_sleep_samples() -> None:
    """Two points and strong noise: with σ = s/2 and five points it is 65 % at N = 1 000 and 25 % at 4 000.

    What is regressed, ∇ log p(z), then varies far more given x than its expectation does over x.
    """
    model = generator(2, Hyperparameters(0.7, 1.0, 1.5))

    def exact(x: Tensor) -> Tensor:
        return log_marginal(torch.stack([model.log_lengthscale, model.log_scale, model.log_noise]), x)

    few, many = (relative_error(model, exact, PolynomialKernel, 1.0, count, 20) for count in (1000, 4000))
    assert many <= 0.1
    assert few > 1.5 * many


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"event_shape": None}, "no attribute 'event_shape'"),
        ({"event_shape": (2, 3)}, r"shape \(2, 3\).*one series a row"),
        ({"event_shape": (1,)}, "at least 2 points"),
        ({"event_shape": (5,), "initial": Hyperparameters(1.0, 0.0, 1.0)}, "model.initial.scale is 0.0"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GaussianProcessModel(**arguments)
