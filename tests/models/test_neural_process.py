"""The neural process against quadrature: its densities, its gradient through the context, and a run of it."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import flat_gradient
from neural_processes import POINTS, latent_grid, log_marginal, tiny
from runs import Images, trainer
from torch import Tensor
from torch.distributions import Normal

from callbacks import Predictions, RegressionDiagnostics
from cli import main
from datamodules import SineFunctions
from lightning_alws.errors import UserError
from lightning_alws.kernels import MedianKernel
from lightning_alws.learning import Learning
from lightning_alws.models import NeuralProcessModel
from lightning_alws.models.neural_process import NeuralProcess
from lightning_alws.regression import KernelRidge

MEDIAN = functools.partial(KernelRidge, kernel=MedianKernel, ridge=0.3, intercept=True)


def learner(count: int = 30, **settings: Any) -> NeuralProcessModel:
    learning = Learning(**({"sleep_samples": count, "regression": MEDIAN} | settings))
    return NeuralProcessModel(latent_dim=3, width=6, learning=learning, event_shape=(8,))


def functions(**settings: Any) -> SineFunctions:
    few = {"training_functions": 20, "validation_functions": 3, "test_functions": 4}
    return SineFunctions(**(few | settings))


def test_log_joint_is_that_of_torch_distributions_point_by_point() -> None:
    """The published network written out for one z and one point at a time: layers on [x, y] and [x, z]."""
    torch.manual_seed(1)
    model = NeuralProcess((3,), latent_dim=2, width=5).double()
    points = torch.tensor([[0.3, -0.2, 1.0], [1.5, 0.7, 0.0], [-2.0, 0.1, 1.0]], dtype=torch.float64)
    model.condition(points)
    sleep = model.sleep(4)
    summary = torch.stack([model.encoder(points[t, :2]) for t in (0, 2)]).mean(0)
    hidden = model.to_mean[0](summary).relu()
    prior = Normal(model.to_mean[2](hidden), 0.1 + 0.9 * torch.sigmoid(model.to_scale(summary)))
    weight = torch.cat([model.from_input.weight, model.from_latent.weight], dim=1)
    for n, z in enumerate(sleep.z):  # type: ignore[arg-type]
        expected = prior.log_prob(z).sum()
        for t in range(3):
            first = weight @ torch.cat([points[t, :1], z]) + model.from_latent.bias
            mean, scale = model.decoder[1](first.relu())  # type: ignore[operator]
            output = Normal(mean, 0.1 + 0.9 * torch.log1p(scale.exp()))
            expected = expected + output.log_prob(sleep.x[n, t])
        torch.testing.assert_close(sleep.joint.log_joint[n], expected)


def test_samples_follow_from_the_seed_and_the_context_and_carry_no_gradient() -> None:
    model = tiny()
    draws = []
    for shift in (0.0, 0.0, 2.0):
        points = POINTS.clone()
        points[0, 1] += shift
        model.condition(points)
        torch.manual_seed(3)
        draws.append(model.sleep(5))
        assert not draws[-1].x.requires_grad
        assert not draws[-1].z.requires_grad  # type: ignore[union-attr]
    assert torch.equal(draws[0].x, draws[1].x)
    assert not torch.equal(draws[0].z, draws[2].z)  # type: ignore[arg-type]


def test_what_is_held_out_never_enters_the_prior() -> None:
    model = NeuralProcess((4,), latent_dim=3, width=6)
    points = torch.randn(2, 4, 3)
    points[..., 2] = torch.tensor([1.0, 0, 1, 0])
    changed = points.clone()
    changed[:, [1, 3], :2] = 9.0
    for before, after in zip(model.encode(points, points[..., 2]), model.encode(changed, points[..., 2]), strict=True):
        assert torch.equal(before, after)
    none = model.encode(points, torch.zeros(2, 4))
    assert all(part.isfinite().all() and torch.equal(part[0], part[1]) for part in none)


def test_predictive_density_is_the_ratio_of_quadratures() -> None:
    """log ∫ p(z|context) p(y_2|z) dz, by 200 000 draws."""
    model = tiny()
    z, log_distance = latent_grid(model)
    density = model.likelihood(z)
    held_out = Normal(density.mean[:, 1], density.log_scale[:, 1].exp()).log_prob(POINTS[1, 1])  # type: ignore[attr-defined]
    expected = (held_out + model.log_prior(z)).logsumexp(0) + log_distance
    ours = model.log_predictive(POINTS[None], 200_000)
    assert ours.shape == (1,)
    torch.testing.assert_close(ours, expected.detach(), atol=0.01, rtol=0)


def relative_errors(count: int, repeats: int) -> dict[str, float]:
    """RMS error of ∇_θ Ĵ(y) over y ~ p and all parameters, or the encoder's, relative to the RMS exact gradient.

    The exact one is computed in float64; the regression in float32, as in training, and twice as fast.
    """
    model = tiny()
    torch.manual_seed(5)
    y = model.sleep(20).x
    exact = torch.stack([flat_gradient(value, model) for value in log_marginal(model, y)])
    encoder = torch.cat(
        [torch.full((p.numel(),), not name.startswith(("decoder", "from"))) for name, p in model.named_parameters()]
    )
    module = NeuralProcessModel(1, 8, Learning(sleep_samples=count, regression=MEDIAN), event_shape=(2,))
    model, y = model.float(), y.float()
    module.generative = model
    differences = []
    for _ in range(repeats):
        sleep, _ = module.sleep()
        values = module.wake(module.regress(sleep), sleep, y)
        differences.append(torch.stack([flat_gradient(value, model) for value in values]) - exact)
    error = torch.stack(differences)
    return {
        part: float(error[..., chosen].square().mean().sqrt() / exact[:, chosen].square().mean().sqrt())
        for part, chosen in (("all", encoder | ~encoder), ("encoder", encoder))
    }


@pytest.mark.slow
def test_gradient_approaches_the_exact_one_through_decoder_and_context_encoder() -> None:
    few, many = relative_errors(1000, 20), relative_errors(4000, 3)
    for part in ("all", "encoder"):
        assert many[part] < 0.1, many
        assert many[part] < few[part] / 1.5, (few, many)


@pytest.mark.slow
def test_parameters_are_recovered_from_data_of_the_models_own() -> None:
    """The output biases, moved away from the values that made the data; all else stays.

    Centred: at N = 200 the regression's bias alone would move the second, which makes the scale, by 0.1.
    """
    truth = tiny()
    y = truth.sleep(2000).x
    model = tiny()
    module = NeuralProcessModel(
        1, 8, Learning(sleep_samples=200, regression=MEDIAN, centring=1.0), event_shape=(2,)
    ).double()
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    module.generative = model.requires_grad_(False)
    bias = model.decoder[1][-1].bias.requires_grad_(True)  # type: ignore[index, union-attr, operator]
    expected = bias.detach().clone()
    with torch.no_grad():
        bias += torch.tensor([1.0, 0.7])
    optimiser = torch.optim.Adam([bias], lr=0.05)
    path = []
    for step in range(150):
        sleep, held_out = module.sleep()
        regression = module.regress(sleep)
        batch = y[torch.arange(100 * step, 100 * step + 100) % len(y)]
        loss = module.update(module.wake(regression, sleep, batch), regression, sleep, held_out)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        path.append(bias.detach().clone())
    torch.testing.assert_close(torch.stack(path[75:]).mean(0), expected, atol=0.1, rtol=0)


def test_every_parameter_gets_a_gradient() -> None:
    module = learner(centring=1.0)
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    data = functions()
    data.setup()
    module.training_step(next(iter(data.train_dataloader())), 0).backward()
    trained = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert [name for name, gradient in trained.items() if gradient is None or not (gradient != 0).any()] == []


def test_training_and_prediction_are_given_the_context_of_each_function(tmp_path: Path) -> None:
    """Averaged weights too: they are another copy of the network."""
    data, module = functions(), learner(averaging=0.9)
    run = trainer(tmp_path, [Predictions(), RegressionDiagnostics(every_n_steps=2)], max_steps=4, val_check_interval=2)
    run.fit(module, datamodule=data)
    assert torch.isfinite(run.callback_metrics["val/objective"])
    assert torch.isfinite(run.callback_metrics["regression/held_out_error"])
    assert module.skipped_total == 0
    run.predict(module, datamodule=data, return_predictions=False)
    with np.load(tmp_path / "predictions" / "posterior.npz") as arrays:
        means = torch.from_numpy(arrays["latent_means"])
        assert torch.equal(torch.from_numpy(arrays["observations"]), data.rows("test")[..., 1])
    for b, points in enumerate(data.rows("test")):
        posterior = module.predict_step(points[None], b)
        model: Any = module.evaluation_model
        assert model is not module.generative
        assert torch.equal(model.points, points)
        torch.testing.assert_close(means[b], posterior.expectation(posterior.sleep.z)[0])  # type: ignore[arg-type]


MODELS = {
    "NeuralProcessModel": ["--model.learning.sleep_samples", "30", "--model.learning.averaging", "0.9"],
    "NeuralProcessELBO": ["--model.averaging", "0.9"],
}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_run_equals_an_uncut_one(tmp_path: Path, model: str) -> None:
    """Cut within an epoch, several functions a step."""

    def fit(name: str, *more: str) -> dict[str, Tensor]:
        arguments = ["fit", "--model", model, *MODELS[model], "--data", "SineFunctions", "--runs", str(tmp_path),
                     "--data.training_functions", "20", "--data.validation_functions", "3", "--name", name,
                     "--data.test_functions", "3", "--trainer.accumulate_grad_batches", "2",
                     "--trainer.val_check_interval", "4", "--trainer.check_val_every_n_epoch", "null",
                     "--trainer.max_epochs", "-1", "--checkpoint.monitor", "null", "--test_after_fit", "false",
                     "--trainer.enable_progress_bar", "false", *more]  # fmt: skip
        assert main(arguments) == 0
        return torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    uncut = fit("uncut", "--trainer.max_steps", "12")
    fit("cut", "--trainer.max_steps", "4")
    resumed = fit("cut", "--trainer.max_steps", "12", "--ckpt_path", "last")
    assert uncut.keys() == resumed.keys()
    assert [name for name in uncut if not torch.equal(uncut[name], resumed[name])] == []


def test_several_functions_a_batch_and_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds 2 functions.*data\.batch_size"):
        trainer(tmp_path, max_steps=1).fit(learner(), datamodule=functions(batch_size=2))
    with pytest.raises(UserError, match=r"points \(functions, T, 3\).*shape \(4, 1, 8, 8\)"):
        trainer(tmp_path, max_steps=1).fit(learner(), datamodule=Images())
    with pytest.raises(UserError, match=r"shape \(1, 8, 2\)"):
        learner().observe(torch.zeros(1, 8, 2))


@pytest.mark.parametrize("name", ["latent_dim", "width"])
def test_sizes_that_make_no_sense_are_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"model\.{name} is 0"):
        NeuralProcessModel(**{name: 0})
    assert math.prod(NeuralProcessModel(2, 4, Learning(sleep_samples=30)).generative.sleep(3).x.shape) == 24
