"""The toy's figure and numbers, from a run of a few steps and from a made-up table."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from runs import image_model, trainer

import callbacks.gradient_panels
from callbacks import GradientError, ResultsFile
from callbacks.results import FILE
from datamodules import SoftplusData
from lightning_alws.errors import UserError
from lightning_alws.learning import Learning
from lightning_alws.low_rank import LowRankRidge
from lightning_alws.metrics.gradient_toy import AMORTISED, RIVALS, Counts
from lightning_alws.metrics.gradients import RelativeError
from lightning_alws.models import SoftplusToy
from lightning_alws.quantile_kernel import QuantileKernel

FEW = Counts(observations=4, held_out=5, repeats=2, rival_repeats=2, fit_steps=2)


@pytest.mark.slow
def test_a_run_draws_and_logs_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for count, few in (("GAUSSIAN_STEPS", 3), ("POSTERIOR_SAMPLES", 50), ("POSTERIOR_REPEATS", 2), ("NODES", 21)):
        monkeypatch.setattr(callbacks.gradient_panels, count, few)
    regression = functools.partial(LowRankRidge, ridge=1.0, kernel=QuantileKernel)
    learning = Learning(sleep_samples=50, held_out=10, regression=regression, centring=1.0, averaging=0.5)
    module, data = SoftplusToy(learn_noise=True, learning=learning), SoftplusData(train_size=20, batch_size=10)
    figure = GradientError([0.5, 1.0], [0.3], sleep_samples=40, fewer_samples=[20], counts=FEW)
    run = trainer(tmp_path, [figure, ResultsFile()], max_steps=2, val_check_interval=2)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["step_000002.png", "test.png"]
    results = json.loads((tmp_path / FILE).read_text())
    for name in ("val/log_likelihood", "val/norm_error", "test/log_likelihood", "test/norm_error"):
        assert name in results["metrics"]
    for form in AMORTISED:
        assert results["metrics"][f"test/rms_{form}_0.5_0.3"] > 0
        assert results["metrics"][f"test/rms_worst_{form}"] > 0
        assert f"test/rate_{form}" in results["metrics"]
    for method in (*AMORTISED, *RIVALS):
        assert results["metrics"][f"test/bias_worst_{method}"] >= 0
    measured = results["provenance"]["gradient_error"]
    assert measured["repeats"] == 2
    assert set(measured["percent_rms_and_bias"]["norm 1, scale 0.3"]) == {*AMORTISED, *RIVALS}


def test_summary_of_a_table() -> None:
    figure = GradientError([0.5, 1.0], [0.3])
    rivals = {name: RelativeError(0.5, 0.3) for name in RIVALS}
    low = rivals | {"vae": RelativeError(0.1, 0.01)}  # below 2 %: not worth comparing
    figure.table = {
        (0.5, 0.3): {**rivals, **dict.fromkeys(AMORTISED, RelativeError(0.04, 0.02))},
        (1.0, 0.3): {**low, **dict.fromkeys(AMORTISED, RelativeError(0.08, 0.4))},
    }
    figure.rates = {
        (0.5, 0.3): {n: dict.fromkeys(AMORTISED, RelativeError(n**-0.5, 0.0)) for n in (500, 2000, 8000)},
        (1.0, 0.3): {n: dict.fromkeys(AMORTISED, RelativeError(3 * n**-0.4, 0.0)) for n in (500, 2000, 8000)},
    }
    numbers = figure.summary()
    assert numbers["rms_direct_0.5_0.3"] == 0.04
    assert numbers["rms_worst_direct"] == 0.08
    assert numbers["bias_worst_direct"] == 0.4
    assert numbers["bias_below_direct"] == pytest.approx(3 / 5)
    assert numbers["rate_direct"] == pytest.approx(-0.45)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"norms": []}, "norms is \\[\\]"),
        ({"scales": [0.1, -1.0]}, "scales is"),
        ({"sleep_samples": 1}, "GradientError.sleep_samples is 1"),
        ({"counts": Counts(repeats=0)}, "GradientError.repeats is 0"),
    ],
)
def test_mistakes_are_named(settings: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        GradientError(**settings)


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made for SoftplusToy"):
        trainer(tmp_path, [GradientError()]).fit(image_model(), datamodule=SoftplusData())
