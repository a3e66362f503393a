"""A Gaussian process from the data to the figure: hyperparameters are recovered, and what is logged is right."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from runs import trainer

from callbacks.checkpoint import RunCheckpoint
from callbacks.gp_hyperparameters import NAMES, GaussianProcessHyperparameters
from datamodules import GaussianProcessSeries, Table
from lightning_alws.gaussian_process import Hyperparameters
from lightning_alws.kernels import PolynomialKernel
from lightning_alws.learning import Learning
from lightning_alws.models import GaussianProcessModel
from lightning_alws.regression import KernelRidge

REGRESSION = functools.partial(KernelRidge, kernel=PolynomialKernel, ridge=0.1)
LEARNING = Learning(200, 200, REGRESSION, centring=1.0, learning_rate=0.04, averaging=0.95)


def model(points: int) -> GaussianProcessModel:
    return GaussianProcessModel(LEARNING, event_shape=(points,))


@pytest.mark.slow
def test_a_run_recovers_the_hyperparameters_and_draws_them(tmp_path: Path) -> None:
    data = GaussianProcessSeries(8, 2.0, 1.5, 0.5, train_size=1000)
    figure = GaussianProcessHyperparameters()
    run = trainer(
        tmp_path,
        [figure, RunCheckpoint("val/log_likelihood", "max")],
        max_steps=150,
        max_epochs=-1,
        val_check_interval=150,
        check_val_every_n_epoch=None,
    )
    module = model(8)
    run.fit(module, datamodule=data)
    assert figure.steps == list(range(0, 151, 5))
    assert figure.history["lengthscale"][0] == pytest.approx(1.0)
    run.test(module, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)

    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    errors = [abs(logged[f"test/{name}"] / logged[f"test/{name}_truth"] - 1) for name in NAMES]
    assert logged["test/largest_error"] == pytest.approx(max(errors), abs=1e-5)
    assert max(errors) < 0.15
    by_ml = Hyperparameters(1.0, 1.0, 1.0).maximised(data.observations("train"))
    for name in NAMES:
        assert logged[f"test/{name}_ml"] == pytest.approx(getattr(by_ml, name), rel=1e-4)
    assert logged["test/gap"] == pytest.approx(
        logged["test/log_likelihood_ml"] - logged["test/log_likelihood"], abs=1e-4
    )
    assert logged["test/posterior_rms_relative"] < 0.3
    assert (tmp_path / "figures" / "test.png").is_file()


@pytest.mark.slow
def test_a_table_has_no_truth(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    rows = torch.randn(300, 4).cumsum(1) + 0.5 * torch.randn(300, 4)
    file.write_text("\n".join(",".join(f"{value:.5f}" for value in row) for row in rows.tolist()))
    run = trainer(tmp_path, [GaussianProcessHyperparameters()], max_steps=2, limit_val_batches=0)
    module, data = model(4), Table(str(file))
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    assert "test/largest_error" not in run.callback_metrics
    assert math.isfinite(run.callback_metrics["test/gap"])
    assert (tmp_path / "figures" / "test.png").is_file()
