"""Factor analysis by EM: that it is a maximum, and the likelihood it is judged by."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

import lightning_alws.metrics.factor_analysis as factor_analysis
from lightning_alws.metrics.factor_analysis import Normal, maximum_likelihood


def data(count: int = 500) -> torch.Tensor:
    weight = torch.tensor([[1.0, 0.0], [0.5, 1.0], [-1.0, 0.3], [0.2, 0.9], [0.7, -0.8], [0.0, 0.4]])
    return torch.randn(count, 2) @ weight.T + 0.5 * torch.randn(count, 6) + 3


def test_log_likelihood_is_torchs() -> None:
    x = data(7)
    mean, covariance = torch.arange(6.0).double(), torch.eye(6).double() + 0.5
    reference = MultivariateNormal(mean, covariance).log_prob(x.double()).mean()
    assert Normal(mean, covariance).log_likelihood(x) == pytest.approx(float(reference))


def test_no_step_from_the_maximum_improves_the_likelihood() -> None:
    """The covariance as WWᵀ + diag ψ, by its own gradient."""
    x = data()
    found = maximum_likelihood(x, 2)
    torch.testing.assert_close(found.mean, x.double().mean(0))
    values, vectors = torch.linalg.eigh(found.covariance)
    assert values.min() > 0
    noise = (1 / torch.linalg.inv(found.covariance).diagonal()).clone()  # a start; then fitted to the covariance
    for _ in range(500):
        values, vectors = torch.linalg.eigh(found.covariance - noise.diag())
        weight = vectors[:, -2:] * values[-2:].clamp_min(0).sqrt()
        noise = (found.covariance - weight @ weight.T).diagonal().clone()
    torch.testing.assert_close(weight @ weight.T + noise.diag(), found.covariance, rtol=0, atol=1e-5)
    weight.requires_grad_(True)
    noise.requires_grad_(True)
    fitted = MultivariateNormal(found.mean, weight @ weight.T + noise.diag())
    fitted.log_prob(x.double()).mean().backward()
    assert weight.grad is not None
    assert noise.grad is not None
    assert max(weight.grad.abs().max(), noise.grad.abs().max()) < 1e-3


def test_no_convergence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor_analysis, "MAX_ITERATIONS", 2)
    with pytest.warns(UserWarning, match="did not converge in 2 iterations"):
        maximum_likelihood(data(), 2)
