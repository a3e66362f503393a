"""The ELBO of a neural process: a bound, tight where q is the posterior, with the gradient of finite differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models import flat_gradient
from neural_processes import POINTS, latent_grid, log_marginal, tiny
from runs import named, trainer
from torch.distributions import Normal

from callbacks import Predictions
from datamodules import SineFunctions
from lightning_alws.baselines import NeuralProcessELBO
from lightning_alws.baselines.neural_process import elbo
from lightning_alws.errors import UserError


def test_the_bound_is_below_the_evidence_by_the_divergence_from_the_posterior() -> None:
    """log p(y|context) − ELBO = KL(q ‖ p(z|y, context)), both sides by quadrature over the one latent."""
    model = tiny()
    bound = elbo(model, POINTS[None], 200_000)
    evidence = log_marginal(model, POINTS[None, :, 1])
    mean, scale = model.encode(POINTS[None], torch.ones(1, 2, dtype=torch.float64))
    z, log_distance = latent_grid(model, 8001)
    log_q = Normal(mean[0], scale[0]).log_prob(z)[:, 0]
    y = POINTS[None, :, 1].expand(len(z), -1)
    log_posterior = model.likelihood(z).log_prob(y) + model.log_prior(z) - evidence
    divergence = ((log_q + log_distance).exp() * (log_q - log_posterior)).sum()
    assert float(divergence.detach()) > 0
    assert float((evidence - bound).detach()) == pytest.approx(float(divergence.detach()), abs=0.01)


def test_without_held_out_points_nothing_diverges_from_the_prior() -> None:
    """q(z|all points) is then p(z|context): the bound is the expected log-likelihood."""
    model = tiny()
    points = POINTS.clone()
    points[:, 2] = 1
    model.condition(points)
    z = model.sample_prior(200_000)
    expected = model.likelihood(z).log_prob(points[None, :, 1].expand(len(z), -1)).mean()
    torch.testing.assert_close(elbo(model, points[None], 200_000)[0], expected, atol=0.02, rtol=0)


def test_gradient_is_that_of_finite_differences() -> None:
    model = tiny()
    batch = torch.stack([POINTS, POINTS + torch.tensor([0.3, 0.2, 0.0])])

    def bound() -> torch.Tensor:
        torch.manual_seed(5)
        return elbo(model, batch, 3).mean()

    gradient, position = flat_gradient(bound(), model), 0
    for parameter in model.parameters():
        with torch.no_grad():
            values = []
            for change in (1e-6, -1e-6):
                parameter.view(-1)[0] += change
                values.append(bound())
                parameter.view(-1)[0] -= change
        assert float(gradient[position]) == pytest.approx(float(values[0] - values[1]) / 2e-6, abs=1e-7)
        position += parameter.numel()


def test_every_parameter_is_trained_and_predictions_are_draws_of_q(tmp_path: Path) -> None:
    data = SineFunctions(training_functions=20, validation_functions=3, test_functions=4)
    module = NeuralProcessELBO(latent_dim=3, width=6, samples=2, averaging=0.9, event_shape=data.event_shape)
    before = named(module)
    run = trainer(tmp_path, [Predictions()], max_steps=4, val_check_interval=2)
    run.fit(module, datamodule=data)
    assert torch.isfinite(run.callback_metrics["val/elbo"])
    after = named(module)
    assert after.keys() == before.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    run.predict(module, datamodule=data, return_predictions=False)
    with np.load(tmp_path / "predictions" / "posterior.npz") as arrays:
        means = torch.from_numpy(arrays["latent_means"])
        assert arrays["reconstructions"].shape == (4, 8)
    points = data.rows("test")
    mean, scale = module.evaluation_model.encode(points, torch.ones(4, 8))  # type: ignore[operator]
    assert float(((means - mean) / scale).abs().max()) < 5 / 1000**0.5


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(UserError, match=r"model\.samples is 0"):
        NeuralProcessELBO(samples=0)
    with pytest.raises(UserError, match=r"model\.learning_rate is -1"):
        NeuralProcessELBO(learning_rate=-1.0)
    with pytest.raises(UserError, match="2 functions"):
        NeuralProcessELBO(2, 4).predict_step(torch.zeros(2, 8, 3), 0)
