"""The neural process's figure: its numbers against a loop over functions, its picture, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import Images, image_model, trainer

from callbacks import NeuralProcessFigure, ResultsFile
from callbacks.results import FILE
from datamodules import SineFunctions
from lightning_alws.baselines import NeuralProcessELBO
from lightning_alws.errors import UserError


def small(**settings: int) -> SineFunctions:
    return SineFunctions(training_functions=8, validation_functions=5, test_functions=7, **settings)


@pytest.mark.slow
def test_numbers_and_picture_of_a_run(tmp_path: Path) -> None:
    data = small()
    module = NeuralProcessELBO(2, 4, averaging=0.5, event_shape=data.event_shape)
    figure = NeuralProcessFigure(num_samples=20_000, val_samples=50, curves=4)
    run = trainer(tmp_path, [figure, ResultsFile()], max_steps=2, val_check_interval=2)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["step_000002.png", "test.png"]
    results = json.loads((tmp_path / FILE).read_text())
    metrics, points = results["metrics"], data.rows("test")
    with torch.no_grad():
        model = torch.stack([module.evaluation_model.log_predictive(p[None], 20_000)[0] / 4 for p in points])  # type: ignore[operator]
    oracle = torch.stack([data.oracle(p[None]).log_predictive(p[None])[0] / 4 for p in points])
    for name, values, tolerance in (
        ("predictive_log_likelihood", model, 0.01),
        ("oracle_log_likelihood", oracle, 1e-6),
        ("gap_to_oracle", oracle - model, 0.01),
        ("median_gap_to_oracle", (oracle - model).sort().values[3:4], 0.01),
    ):
        assert metrics[f"test/{name}"] == pytest.approx(float(values.mean()), abs=tolerance)
    for name, values in (("predictive", model), ("oracle", oracle), ("gap", oracle - model)):
        error = float(values.std()) / 7**0.5
        assert metrics[f"test/{name}_standard_error"] == pytest.approx(error, rel=0.02)
        assert f"val/{name}_standard_error" in metrics
    assert results["provenance"]["predictive_log_likelihood"] == {"samples_per_function": 20_000, "functions": 7}


def test_fewer_functions_than_columns_make_a_narrower_figure() -> None:
    data = small(context_points=2)
    data.setup()
    with torch.no_grad():
        figure = NeuralProcessFigure(columns=9, curves=3).draw(NeuralProcessELBO(2, 4), data, "val")
    assert len(figure.axes) == 2 * 5
    for axis in figure.axes:  # three curves, the truth, two points of context and four held out
        lengths = sorted(len(line.get_xdata()) for line in axis.lines)  # type: ignore[arg-type]
        assert lengths == [0, 2, 4, 200, 200, 200, 200]


def test_other_models_and_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NeuralProcessFigure, but the model is ImageModel"):
        trainer(tmp_path, [NeuralProcessFigure()]).fit(image_model(), datamodule=Images())
    with pytest.raises(UserError, match="whose truth is known, but those are Images"):
        trainer(tmp_path, [NeuralProcessFigure()]).fit(NeuralProcessELBO(2, 4), datamodule=Images())
    with pytest.raises(UserError, match="curves is 0"):
        NeuralProcessFigure(curves=0)
