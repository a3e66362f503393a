"""The Kalman filter, smoother and EM against the joint Gaussian of a whole series."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from lightning_alws.metrics.kalman import KalmanModel, maximum_likelihood, random_start

STEPS = 4


@pytest.fixture
def model() -> KalmanModel:
    draw = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    roots = normal(2, 2, 2)
    return KalmanModel(
        0.6 * normal(2, 2),
        normal(3, 2),
        0.3 * roots[0] @ roots[0].T + 0.1 * torch.eye(2),
        (0.2 + normal(3).square()).diag(),
        normal(2),
        roots[1] @ roots[1].T,
    )


def joint(model: KalmanModel, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of (z_1, …, z_T), and the map C of all steps at once, built from z = F ε."""
    size = steps * 2
    through, mean = torch.zeros(size, size).double(), torch.zeros(size).double()
    roots = [torch.linalg.cholesky(model.initial_covariance)] + [torch.linalg.cholesky(model.process)] * (steps - 1)
    for t in range(steps):
        mean[2 * t : 2 * t + 2] = torch.linalg.matrix_power(model.dynamics, t) @ model.initial_mean
        for s in range(t + 1):
            block = torch.linalg.matrix_power(model.dynamics, t - s) @ roots[s]
            through[2 * t : 2 * t + 2, 2 * s : 2 * s + 2] = block
    return mean, through @ through.T, torch.block_diag(*[model.loadings] * steps)


def draw(model: KalmanModel, count: int, steps: int) -> Tensor:
    mean, covariance, loadings = joint(model, steps)
    z = MultivariateNormal(mean, covariance).sample((count,))
    x = (z @ loadings.T).view(count, steps, -1)
    return x + torch.randn_like(x) * model.observation.diagonal().sqrt()


def test_likelihood_and_its_gradient_are_the_joint_gaussians(model: KalmanModel) -> None:
    x = draw(model, 6, STEPS)
    model.dynamics.requires_grad_()
    model.initial_mean.requires_grad_()
    mean, covariance, loadings = joint(model, STEPS)
    noise = torch.block_diag(*[model.observation] * STEPS)
    reference = MultivariateNormal(loadings @ mean, loadings @ covariance @ loadings.T + noise)
    by_filter, exact = model.log_marginal(x), reference.log_prob(x.flatten(1))
    torch.testing.assert_close(by_filter, exact)
    for parameter in (model.dynamics, model.initial_mean):
        ours = torch.autograd.grad(by_filter.sum(), parameter, retain_graph=True)[0]
        torch.testing.assert_close(ours, torch.autograd.grad(exact.sum(), parameter, retain_graph=True)[0])


def test_smoother_conditions_the_joint_gaussian(model: KalmanModel) -> None:
    x = draw(model, 5, STEPS)
    mean, covariance, loadings = joint(model, STEPS)
    observed = loadings @ covariance @ loadings.T + torch.block_diag(*[model.observation] * STEPS)
    gain = torch.linalg.solve(observed, loadings @ covariance).T
    posterior_mean = mean + (x.flatten(1) - loadings @ mean) @ gain.T
    posterior = covariance - gain @ loadings @ covariance
    smoothed = model.smooth(x)
    torch.testing.assert_close(smoothed.mean.flatten(1), posterior_mean)
    for t in range(STEPS):
        now, before = slice(2 * t, 2 * t + 2), slice(2 * t - 2, 2 * t)
        torch.testing.assert_close(smoothed.covariance[t], posterior[now, now])
        if t:
            torch.testing.assert_close(smoothed.lagged[t - 1], posterior[now, before])


@pytest.mark.slow
def test_em_never_lowers_the_likelihood_and_ends_where_its_gradient_vanishes(model: KalmanModel) -> None:
    x = draw(model, 300, STEPS)
    current, values = random_start(x, 2, torch.Generator().manual_seed(0)), []
    for _ in range(40):
        values.append(float(current.log_marginal(x).sum()))
        current = current.improved(x)
    assert all(later > earlier for earlier, later in itertools.pairwise(values))

    best = maximum_likelihood(x, [model, current])
    assert float(best.log_marginal(x).mean()) > float(model.log_marginal(x).mean())
    parts = {field.name: getattr(best, field.name).clone().requires_grad_() for field in dataclasses.fields(best)}
    (KalmanModel(**parts).log_marginal(x).mean() / STEPS).backward()
    for name, part in parts.items():
        gradient = part.grad.diagonal() if name == "observation" else part.grad  # R is diagonal: the rest is not free
        assert gradient.abs().max() < 0.02, name
