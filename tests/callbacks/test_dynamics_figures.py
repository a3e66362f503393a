"""Dynamical models from the data to the figure: parameters are recovered, and what is logged of them is right."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Images, image_model, trainer
from torch import Tensor

from callbacks.checkpoint import RunCheckpoint
from callbacks.linear_dynamics import KalmanComparison, true_model
from callbacks.oscillator import NAMES, Oscillator
from datamodules import LinearDynamicsData, Sinusoid
from lightning_alws.errors import UserError
from lightning_alws.kernels import MedianKernel, PolynomialKernel
from lightning_alws.learning import Learning
from lightning_alws.metrics.kalman import KalmanModel
from lightning_alws.models import LinearDynamicsModel, NeuralDynamicsModel
from lightning_alws.regression import KernelRidge

REGRESSION = functools.partial(KernelRidge, kernel=PolynomialKernel, ridge=0.1)
LINEAR = Learning(400, 100, REGRESSION, centring=1.0, learning_rate=0.08, final_learning_rate=0.008, averaging=0.95)
NEURAL = Learning(90, 60, functools.partial(KernelRidge, kernel=MedianKernel), centring=1.0)


def table(folder: Path) -> str:
    path = folder / "series.csv"
    rows = torch.stack([(torch.arange(60) / 2).sin(), (torch.arange(60) / 2).cos()], 1) + 0.5 * torch.randn(60, 2)
    path.write_text("\n".join(["a,b", *(f"{a:.4f},{b:.4f}" for a, b in rows.tolist())]))
    return str(path)


def identified(model: KalmanModel) -> dict[str, Tensor]:
    """What is the same in all coordinates of the latents, and so is fixed by the data."""
    eigenvalues, loadings = torch.linalg.eigvals(model.dynamics), model.loadings
    return {
        "moduli": eigenvalues.abs(),
        "angles": eigenvalues.angle().abs(),
        "C m": loadings @ model.initial_mean,
        "C S C'": loadings @ model.initial_covariance @ loadings.T,
        "C Q C'": loadings @ model.process @ loadings.T,
        "observation scales": model.observation.diag().sqrt(),
    }


@pytest.mark.slow
def test_a_linear_run_recovers_every_parameter_and_the_likelihood(tmp_path: Path) -> None:
    """To 10 % of the largest entry of each; with data of seeds 0 and 1 to 12.5 %.

    Five observed numbers tell two factors from the noise of each already at one time; with three they hardly do.
    """
    data, figure = LinearDynamicsData(3, 5, 2000, 300, 1000, seed=2), KalmanComparison()
    run = trainer(
        tmp_path,
        [figure, RunCheckpoint("val/log_likelihood", "max")],
        max_steps=300,
        max_epochs=-1,
        val_check_interval=100,
        check_val_every_n_epoch=None,
    )
    torch.manual_seed(2)
    model = LinearDynamicsModel(2, LINEAR, data.event_shape)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)
    assert figure.steps == [100, 200, 300]
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["test/gap"] == pytest.approx(
        logged["test/log_likelihood_em"] - logged["test/log_likelihood"], abs=1e-5
    )
    assert abs(logged["test/gap"]) < 0.01
    assert abs(logged["test/log_likelihood_em"] - logged["test/log_likelihood_truth"]) < 0.01
    with torch.no_grad():
        learnt, truth = identified(model.evaluation_model.exact), identified(true_model(data))  # type: ignore[arg-type, union-attr]
    for name, value in learnt.items():
        assert float((value - truth[name]).abs().max() / truth[name].abs().max()) < 0.1, name
    assert (tmp_path / "figures" / "test.png").is_file()


@pytest.mark.parametrize("window", [None, pytest.param((1, 1), marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_oscillator_is_measured_and_drawn(tmp_path: Path, window: tuple[int, int] | None, monkeypatch: Any) -> None:
    monkeypatch.setattr("callbacks.oscillator.SIZES", {"val": (30, 120), "test": (30, 120)})
    monkeypatch.setattr("callbacks.oscillator.PARTICLES", {"val": 50, "test": 50})
    data, figure = Sinusoid(2, 8), Oscillator()
    model = NeuralDynamicsModel(2, 5, NEURAL, window, event_shape=data.event_shape)
    run = trainer(tmp_path, [figure], max_steps=2, max_epochs=2, check_val_every_n_epoch=2)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["test/period_truth"] == pytest.approx(12, abs=1)
    assert logged["test/period_data"] == pytest.approx(12, abs=3)  # two series of 8 steps
    assert logged["test/observation_scale"] == pytest.approx(float(model.dynamics.log_observation_scale.detach().exp()))
    assert logged["test/diffusion_ratio"] == pytest.approx(
        logged["test/diffusion"] / figure.truth(data).diffusion,  # type: ignore[union-attr]
        rel=1e-4,
    )
    assert math.isfinite(logged["test/log_likelihood"])
    assert figure.steps == [2]
    assert (tmp_path / "figures" / "test.png").is_file()


@pytest.mark.slow
def test_a_users_series_has_no_truth(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("callbacks.oscillator.SIZES", {"val": (30, 120), "test": (30, 120)})
    monkeypatch.setattr("lightning_alws.metrics.kalman.MAX_ITERATIONS", 200)  # 36 points say little
    monkeypatch.setattr("lightning_alws.metrics.kalman.TOLERANCE", 1e-3)
    path = table(tmp_path)
    oscillation = Sinusoid(2, 30, path, ["a"])
    linear = LinearDynamicsData(6, path=path, columns=["a", "b"], validation_size=2, test_size=2)
    cases: list[tuple[Any, Any, Any]] = [
        (NeuralDynamicsModel(2, 5, NEURAL, (1, 1), event_shape=(30, 1)), oscillation, Oscillator()),
        (LinearDynamicsModel(2, LINEAR, (6, 2)), linear, KalmanComparison()),
    ]
    for model, data, figure in cases:
        run = trainer(tmp_path, [figure], max_steps=2, limit_val_batches=0)
        run.fit(model, datamodule=data)
        run.test(model, datamodule=data, verbose=False)
        assert math.isfinite(run.callback_metrics["test/log_likelihood"])
        assert not any("truth" in name for name in (*run.callback_metrics, *NAMES))
        (tmp_path / "figures" / "test.png").unlink()
        drawn = figure.draw(model, data, "test")
        assert all(axis.has_data() for axis in drawn.axes if axis.axison)  # no empty frame where the truth would be


@pytest.mark.parametrize("figure", [KalmanComparison, Oscillator])
def test_another_model_is_named(tmp_path: Path, figure: Any) -> None:
    with pytest.raises(UserError, match=f"{figure.__name__}, which is made for"):
        trainer(tmp_path, [figure()]).fit(image_model(), datamodule=Images())
