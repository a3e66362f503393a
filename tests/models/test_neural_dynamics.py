"""A non-linear state space model: its amortised gradient against quadrature over its one latent, its mistakes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from gradient_error import relative_error
from runs import trainer
from torch import Tensor
from torch.distributions import Normal

from datamodules import Sinusoid
from lightning_alws.errors import UserError
from lightning_alws.kernels import GaussianKernel
from lightning_alws.learning import Learning
from lightning_alws.models import NeuralDynamicsModel
from lightning_alws.models.neural_dynamics import NeuralDynamics
from lightning_alws.penalties import NormalPenalty


def generator(steps: int = 3) -> NeuralDynamics:
    """One latent, two observed numbers, and networks that bend."""
    torch.manual_seed(4)
    model = NeuralDynamics((steps, 2), 1, hidden=3, process_scale=0.5, observation_scale=0.7)
    with torch.no_grad():
        for parameter in [*model.step.parameters(), *model.picture.parameters()]:
            parameter.mul_(1.5)
    return model


def log_marginal(model: NeuralDynamics, x: Tensor, points: int = 161) -> Tensor:
    """log p(x) by the forward recursion on a grid of the latent, for x (B, T, 2)."""
    grid = torch.linspace(-4, 4, points, dtype=x.dtype)[:, None]
    width = (grid[1, 0] - grid[0, 0]).log()
    scale = model.log_process_scale.exp()
    onto = Normal(model.step(grid), scale).log_prob(grid.T) + width  # from a row's point to a column's
    seen = Normal(model.picture(grid), model.log_observation_scale.exp()).log_prob(x[:, :, None]).sum(-1)
    message = Normal(model.step(model.start[None]), scale).log_prob(grid)[:, 0] + width
    for t in range(x.shape[1]):
        if t:
            message = torch.logsumexp(message[:, :, None] + onto, dim=1)
        message = message + seen[:, t]
    return torch.logsumexp(message, dim=1)


def test_quadrature_is_exact_enough_to_judge_by() -> None:
    model = generator().double()
    x = model.sleep(5).x
    torch.testing.assert_close(log_marginal(model, x), log_marginal(model, x, 321), rtol=1e-9, atol=1e-9)
    likelihood = model.likelihood(model.sample_prior(100_000))
    pairs = torch.stack([likelihood.log_prob(row.expand(100_000, *row.shape)) for row in x])
    estimate = torch.logsumexp(pairs, 1) - torch.tensor(100_000.0).log()
    torch.testing.assert_close(log_marginal(model, x), estimate, rtol=0, atol=0.05)


@pytest.mark.slow
def test_gradient_error_falls_with_the_sleep_samples() -> None:
    model, kernel = generator(), functools.partial(GaussianKernel, bandwidth=5.0)
    few, many = (
        relative_error(model, functools.partial(log_marginal, model), kernel, 0.1, count, 20, 1)
        for count in (1000, 4000)
    )
    assert many <= 0.1
    assert few > 1.5 * many


@pytest.mark.parametrize("window", [None, (2, 1)])
@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_every_parameter_gets_a_gradient(window: tuple[int, int] | None, averaging: float) -> None:
    module = NeuralDynamicsModel(2, 4, Learning(60, 20, centring=1.0, averaging=averaging), window, event_shape=(5, 3))
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    batch = torch.randn(6, 5, 3)
    module.training_step(batch, 0).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert len(gradients) == 11
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
    module.on_validation_epoch_start()
    module.validation_step(batch, 0)
    assert module.posterior_mean(batch).shape == (6, 5, 2)
    assert isinstance(module.dynamics, NeuralDynamics)


@pytest.mark.parametrize(("window", "count"), [(None, 2), ((1, 1), 16)])
def test_log_priors_are_divided_by_what_the_objective_averages_over(
    tmp_path: Path, window: tuple[int, int] | None, count: int
) -> None:
    data, prior = Sinusoid(2, 8), NormalPenalty("step.0.weight" if window is None else "model.step.0.weight", 0.5)
    model = NeuralDynamicsModel(2, 4, Learning(60, 20, penalties=[prior]), window, event_shape=data.event_shape)
    trainer(tmp_path, [], max_steps=1, max_epochs=-1, limit_val_batches=0).fit(model, datamodule=data)
    torch.testing.assert_close(model.penalty([prior]), prior(model.generative) / count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": 0}, "model.hidden is 0"),
        ({"process_scale": 0.0}, r"model\.process_scale is 0\.0; give a positive number"),
        ({"window": (0, -1)}, r"window\.future is -1"),
        ({"event_shape": (3,)}, r"shape \(3,\)"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NeuralDynamicsModel(**({"event_shape": (4, 2)} | arguments))
