"""Factor analysis from the data to the figure: the maximum is found, and what is logged of it is right."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from runs import Images, image_model, trainer

from callbacks.checkpoint import RunCheckpoint
from callbacks.factor_covariances import FactorCovariances
from datamodules import LinearGaussianData, Table
from lightning_alws.errors import UserError
from lightning_alws.kernels import PolynomialKernel
from lightning_alws.learning import Learning
from lightning_alws.models import LinearGaussianModel
from lightning_alws.regression import KernelRidge

REGRESSION = functools.partial(KernelRidge, kernel=PolynomialKernel, ridge=0.1)
LEARNING = Learning(150, 150, REGRESSION, centring=1.0, learning_rate=0.06, averaging=0.95)


@pytest.mark.slow
def test_a_run_reaches_exact_maximum_likelihood_and_draws_it(tmp_path: Path) -> None:
    data = LinearGaussianData(2000, 300, 1000, observed_dim=4, latent_dim=1)
    figure = FactorCovariances()
    run = trainer(
        tmp_path,
        [figure, RunCheckpoint("val/log_likelihood", "max")],
        max_steps=240,
        max_epochs=-1,
        val_check_interval=120,
        check_val_every_n_epoch=None,
    )
    model = LinearGaussianModel(1, LEARNING, data.event_shape)
    run.fit(model, datamodule=data)
    assert figure.steps == [120, 240]
    kept = list(figure.history["gap"])
    run.test(model, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)
    assert figure.history["gap"] == kept  # the best checkpoint may know less of the course

    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    assert logged["test/gap"] == pytest.approx(
        logged["test/log_likelihood_em"] - logged["test/log_likelihood"], abs=1e-5
    )
    assert abs(logged["test/gap"]) < 0.02
    assert abs(logged["test/log_likelihood_em"] - logged["test/log_likelihood_truth"]) < 0.02
    x = data.observations("test").double()
    by_hand = torch.distributions.MultivariateNormal(data.true_mean, data.true_covariance).log_prob(x).mean()
    assert logged["test/log_likelihood_truth"] == pytest.approx(float(by_hand), rel=1e-6)
    assert [file.name for file in sorted((tmp_path / "figures").iterdir())][-1] == "test.png"

    resumed = FactorCovariances()
    resumed.load_state_dict(figure.state_dict())
    assert (resumed.steps, resumed.history) == (figure.steps, figure.history)


def test_a_table_has_no_truth(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    rows = torch.randn(300, 3) @ torch.tensor([[1.0, 0.5, 0.2], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
    file.write_text("\n".join(",".join(f"{value:.5f}" for value in row) for row in rows.tolist()))
    data = Table(str(file))
    model = LinearGaussianModel(1, LEARNING, data.event_shape)
    run = trainer(tmp_path, [FactorCovariances()], max_steps=2, limit_val_batches=0)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    assert "test/log_likelihood_truth" not in run.callback_metrics
    assert math.isfinite(run.callback_metrics["test/gap"])
    assert (tmp_path / "figures" / "test.png").is_file()


def test_another_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="FactorCovariances, which is made for LinearGaussianModel"):
        trainer(tmp_path, [FactorCovariances()]).fit(image_model(), datamodule=Images())
