"""The regression's figures against plain loops, and the one warning."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from models import LearntPrior, LinearGaussian
from runs import METHODS, Images, image_model, named, trainer
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from callbacks.regression_diagnostics import RegressionDiagnostics
from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel, Sleep
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.models import IndependentComponents
from lightning_alws.regression import KernelRidge

ALWAYS = {
    "held_out_error",
    "held_out_bias",
    "weight_sum",
    "weight_l1",
    "effective_samples",
    "ridge",
    "bandwidth",
    "jitter",
    "skipped",
}
GAUSSIAN = {"negative_residual_share", "noise_scale"}


def setting(
    model: LatentVariableModel, mode: str = "plug-in", ridge: float = 1e-2
) -> tuple[Sleep, Sleep, Tensor, Tensor, dict]:
    """Sleep samples, held-out ones, their weights and those of 12 wake observations, and the figures."""
    torch.manual_seed(4)
    learning = Learning(sleep_samples=25, mode=mode, regression=functools.partial(KernelRidge, ridge=ridge))  # type: ignore[arg-type]
    module = AmortisedLearning(model, learning).double()
    with torch.no_grad():
        samples, wake = module.draw(25 + 15, "any"), model.sleep(12).x
        sleep, held_out = samples[:25], samples[25:]
        fitted = module.regression.fit(sleep.x)
        figures = RegressionDiagnostics.figures(fitted, sleep, held_out, wake)
        # Weights by a solver of their own.
        kernel, s = module.regression.kernel, module.regression.kernel.log_bandwidth.exp()
        gram = torch.exp(-0.5 * torch.cdist(sleep.x, sleep.x).square() / s**2)
        regularised = gram + module.regression.ridge * torch.eye(25).double()
        assert kernel.by_median
        weights, wake_weights = (
            torch.linalg.inv(regularised) @ torch.exp(-0.5 * torch.cdist(sleep.x, x).square() / s**2)
            for x in (held_out.x, wake)
        )
    return sleep, held_out, weights, wake_weights, {"figures": figures, "wake": wake}


def log_joint(model: Any, z: Tensor, x: Tensor) -> Tensor:
    """log p(x|z), and log p(z) where the prior is learnt, by torch.distributions, for one z and one x."""
    if isinstance(model, LinearGaussian):
        return Normal(model.weight @ z + model.bias, model.log_scale.exp()).log_prob(x).sum()
    return Bernoulli(logits=z @ model.weight).log_prob(x).sum() + Normal(model.prior_mean, 1.0).log_prob(z).sum()


@pytest.mark.parametrize("make", [LinearGaussian, LearntPrior])
@pytest.mark.parametrize("mode", ["plug-in", "direct"])
def test_held_out_error_is_that_of_plain_loops(make: Any, mode: str) -> None:
    model = make()
    sleep, held_out, weights, _, result = setting(model, mode)
    errors, truths = [], []
    for v in range(15):
        predicted = torch.zeros((), dtype=torch.float64)
        for n in range(25):
            observation = held_out.x[v] if mode == "plug-in" else sleep.x[n]
            predicted += weights[n, v] * log_joint(model, sleep.z[n], observation)
        truths.append(log_joint(model, held_out.z[v], held_out.x[v]))
        errors.append(predicted - truths[-1])
    error = torch.stack(errors).detach()
    expected = error.square().mean() / torch.stack(truths).detach().var()
    torch.testing.assert_close(result["figures"]["held_out_error"], expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(result["figures"]["held_out_bias"], error.mean(), rtol=1e-8, atol=1e-10)


def test_weights_are_summed_by_plain_loops() -> None:
    _, _, _, weights, result = setting(LinearGaussian())
    sums, absolutes, effective = [], [], []
    for b in range(12):
        column = [float(w) for w in weights[:, b]]
        sums.append(sum(column))
        absolutes.append(sum(abs(w) for w in column))
        effective.append(absolutes[-1] ** 2 / sum(w * w for w in column))
    assert any(abs(a - s) > 0.1 for a, s in zip(absolutes, sums, strict=True))  # some weights are negative
    for name, values in (("weight_sum", sums), ("weight_l1", absolutes), ("effective_samples", effective)):
        assert float(result["figures"][name]) == pytest.approx(sum(values) / 12, rel=1e-8)
    assert 1 < float(result["figures"]["effective_samples"]) < 25


def test_effective_samples_at_both_ends() -> None:
    """One sample far from all others decides alone; equally far samples count alike."""
    model = LinearGaussian(observed_dim=3)
    module = AmortisedLearning(model, Learning(sleep_samples=3)).double()
    with torch.no_grad():
        sleep = module.draw(3, "any")
        far = Sleep(sleep.z, 1e3 * torch.eye(3).double(), sleep.joint)
        fitted = module.regression.fit(far.x)
        alone = RegressionDiagnostics.figures(fitted, far, far[:2], far.x[:1])
        nearby = Sleep(sleep.z, 1e-1 * torch.eye(3).double(), sleep.joint)
        fitted = module.regression.fit(nearby.x)
        alike = RegressionDiagnostics.figures(fitted, nearby, nearby[:2], torch.zeros(1, 3).double())
    assert float(alone["effective_samples"]) == pytest.approx(1)
    assert float(alike["effective_samples"]) == pytest.approx(3)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_negative_residual_share_is_that_of_plain_loops(ridge: float) -> None:
    model = LinearGaussian(latent_dim=3, observed_dim=3, log_scale=-2.0)
    sleep, _, _, weights, result = setting(model, ridge=ridge)
    negative = 0
    for b in range(12):
        residual = 0.0
        for n in range(25):
            difference = result["wake"][b] - (model.weight @ sleep.z[n] + model.bias)
            residual += float(weights[n, b]) * float((difference @ difference).detach())
        negative += residual < 0
    assert float(result["figures"]["negative_residual_share"]) == pytest.approx(negative / 12)
    assert float(result["figures"]["noise_scale"]) == pytest.approx(float(torch.tensor(-2.0).exp()))
    if ridge == 1e-6:
        assert 0 < negative < 12


def test_what_only_gaussian_likelihoods_in_plug_in_form_have() -> None:
    assert set(setting(LinearGaussian())[-1]["figures"]) >= GAUSSIAN
    assert not GAUSSIAN & set(setting(LinearGaussian(), "direct")[-1]["figures"])
    assert not GAUSSIAN & set(setting(LearntPrior())[-1]["figures"])
    residual = setting(IndependentComponents((3,), 2, weight_std=1.0).double())[-1]["figures"]
    assert GAUSSIAN & set(residual) == {"noise_scale"}


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("method", ["AL-F", "centred AL-A"])
def test_logged_in_a_run(tmp_path: Path, likelihood: str, method: str) -> None:
    model, callback = image_model(likelihood, **METHODS[method]), RegressionDiagnostics(2)
    run = trainer(tmp_path, [callback], max_steps=4)
    run.fit(model, datamodule=Images(likelihood))
    logged = {name.removeprefix("regression/"): float(value) for name, value in run.callback_metrics.items()}
    assert {name for name in logged if "/" not in name} == ALWAYS | (GAUSSIAN if likelihood == "gaussian" else set())
    assert logged["ridge"] == pytest.approx(float(model.regression.ridge.detach()))
    assert logged["bandwidth"] == pytest.approx(float(model.regression.kernel.log_bandwidth.detach().exp()))
    assert logged["jitter"] == logged["skipped"] == 0
    if likelihood == "gaussian":
        scale = model.generative.likelihood(torch.zeros(1, 2)).log_scale.detach().exp()  # type: ignore[attr-defined]
        assert logged["noise_scale"] == pytest.approx(float(scale))


def count_measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each measurement."""
    measured: list[int] = []
    original = RegressionDiagnostics.figures

    def figures(*arguments: Any) -> dict[str, Tensor]:
        measured.append(1)
        return original(*arguments)

    monkeypatch.setattr(RegressionDiagnostics, "figures", staticmethod(figures))
    return measured


@pytest.mark.parametrize(
    ("every", "steps", "accumulate", "times"), [(1, 4, 1, 4), (2, 5, 1, 2), (3, 7, 1, 2), (2, 4, 2, 2)]
)
def test_measured_every_so_many_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, steps: int, accumulate: int, times: int
) -> None:
    """Of the optimiser: not at each of the batches that one step accumulates."""
    measured = count_measurements(monkeypatch)
    run = trainer(tmp_path, [RegressionDiagnostics(every)], max_steps=steps, accumulate_grad_batches=accumulate)
    run.fit(image_model(), datamodule=Images())
    assert len(measured) == times


def test_measuring_changes_no_training(tmp_path: Path) -> None:
    model = image_model(**METHODS["AL-A"])
    start, ends = {name: value.clone() for name, value in model.state_dict().items()}, []
    for callbacks in ([], [RegressionDiagnostics(1)]):
        model.load_state_dict(start)
        torch.manual_seed(3)
        trainer(tmp_path, callbacks).fit(model, datamodule=Images())
        ends.append((named(model), torch.get_rng_state()))
    assert all(torch.equal(value, ends[1][0][name]) for name, value in ends[0][0].items())
    assert torch.equal(ends[0][1], ends[1][1])


def warned_in_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch, shares: list[float]) -> list[str]:
    """The warnings of a run in which these negative residual shares are measured."""
    coming = iter(shares)
    figures = lambda *_: {"negative_residual_share": torch.tensor(next(coming))}  # noqa: E731
    monkeypatch.setattr(RegressionDiagnostics, "figures", staticmethod(figures))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(folder, [RegressionDiagnostics(1)], max_steps=len(shares), max_epochs=-1)
        run.fit(image_model("gaussian"), datamodule=Images("gaussian"))
    return [str(warning.message) for warning in caught if "negative squared residual" in str(warning.message)]


def test_warns_once_above_one_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (message,) = warned_in_a_run(tmp_path, monkeypatch, [0.1, 0.6, 0.9, 0.7])
    assert "60%" in message
    assert "model.learning.regression.ridge" in message


@pytest.mark.parametrize("share", [0.0, 0.5, float("nan")])
def test_does_not_warn_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    assert warned_in_a_run(tmp_path, monkeypatch, [share, share]) == []


@pytest.mark.filterwarnings("ignore:step .* skipped")
def test_a_failing_regression_is_counted_and_no_figure_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model()
    original = model.regression.fit

    def fit(x: Tensor, wake: Tensor | None = None) -> Any:
        fitted = original(x)
        fitted.failure = "a failure was planted"
        return fitted

    monkeypatch.setattr(model.regression, "fit", fit)
    run = trainer(tmp_path, [RegressionDiagnostics(1)], max_steps=3, limit_val_batches=0)
    run.fit(model, datamodule=Images())
    logged = {name for name in run.callback_metrics if name.startswith("regression/")}
    assert logged == {f"regression/{name}" for name in ("ridge", "bandwidth", "jitter", "skipped")}
    assert float(run.callback_metrics["regression/skipped"]) == 3


@pytest.mark.parametrize("every", [0, -5])
def test_senseless_numbers_are_refused(every: int) -> None:
    with pytest.raises(UserError, match=f"diagnostics.every_n_steps is {every}"):
        RegressionDiagnostics(every)
