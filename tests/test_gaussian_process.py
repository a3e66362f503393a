"""What is exact about a Gaussian process, against torch.distributions and conditioning written out."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from lightning_alws.errors import UserError
from lightning_alws.gaussian_process import JITTER, Hyperparameters

TRUTH = Hyperparameters(2.0, 1.5, 0.5)
POINTS = 8


def series(count: int) -> torch.Tensor:
    _, observed = TRUTH.covariance(POINTS)
    return MultivariateNormal(torch.zeros(POINTS).double(), observed).sample((count,))


def test_covariance_is_stationary_with_the_scale_and_the_noise_on_its_diagonal() -> None:
    latent, observed = TRUTH.covariance(POINTS)
    torch.testing.assert_close(latent.diagonal(), torch.full((POINTS,), 2.25 * (1 + JITTER)).double())
    torch.testing.assert_close(latent[0, 2], torch.tensor(2.25).double() * torch.tensor(-0.5).double().exp())
    torch.testing.assert_close(latent[0, 3], latent[4, 1])
    torch.testing.assert_close(observed - latent, 0.25 * torch.eye(POINTS).double())


def test_log_marginal_is_torchs() -> None:
    x = series(5)
    _, observed = TRUTH.covariance(POINTS)
    reference = MultivariateNormal(torch.zeros(POINTS).double(), observed).log_prob(x)
    torch.testing.assert_close(TRUTH.log_marginal(x), reference)


def test_posterior_mean_is_that_of_the_joint_normal() -> None:
    """As the minimiser over z of ‖x − z‖²/σ² + zᵀK⁻¹z, the posterior's mode."""
    x = series(3)
    latent, _ = TRUTH.covariance(POINTS)
    precision = torch.linalg.inv(latent) + torch.eye(POINTS).double() / TRUTH.noise**2
    mode = torch.linalg.solve(precision, x.T / TRUTH.noise**2).T
    torch.testing.assert_close(TRUTH.posterior_mean(x), mode, rtol=1e-7, atol=1e-7)


def test_maximum_is_one_and_near_the_truth() -> None:
    x = series(4000)
    found = Hyperparameters(1.0, 1.0, 1.0).maximised(x)
    best = found.log_marginal(x).mean()
    for name, value in vars(found).items():
        assert value == pytest.approx(getattr(TRUTH, name), rel=0.05)
        for factor in (0.99, 1.01):
            moved = Hyperparameters(**{**vars(found), name: factor * value})
            assert moved.log_marginal(x).mean() < best


def test_data_without_a_maximum_are_named() -> None:
    with pytest.raises(UserError, match="no maximum that could be found"):
        TRUTH.maximised(torch.zeros(10, POINTS))


def test_hyperparameters_must_be_positive() -> None:
    with pytest.raises(UserError, match=r"data\.noise is -1\.0; give a positive number"):
        Hyperparameters(1.0, 1.0, -1.0).check("data")
