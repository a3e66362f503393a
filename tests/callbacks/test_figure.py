"""Figures of experiments: drawn and measured at the right moments, seeded, refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from runs import Images, image_model, trainer

from callbacks import ExperimentFigure, ResultsFile
from callbacks.results import FILE
from lightning_alws.errors import UserError
from lightning_alws.learning import AmortisedLearning
from lightning_alws.models import ImageModel


class Scatter(ExperimentFigure):
    """Draws two random numbers and measures one."""

    model_class = ImageModel

    def __init__(self) -> None:
        self.drawn: list[torch.Tensor] = []

    def measure(self, module, data, split):
        with torch.enable_grad():  # also in the test, which Lightning runs in inference mode
            square = torch.ones((), requires_grad=True).square()
            (slope,) = torch.autograd.grad(square, square.grad_fn.next_functions[0][0].variable)  # type: ignore[union-attr]
        return {"random": float(torch.rand(())), "slope": float(slope), "count": len(data.images(split))}

    def draw(self, module, data, split):
        self.drawn.append(torch.rand(2))
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot(self.drawn[-1])
        return figure


def run(folder: Path) -> Scatter:
    figure, data = Scatter(), Images()
    made = trainer(folder, [figure, ResultsFile()], max_steps=4, val_check_interval=2)
    model = image_model()
    made.fit(model, datamodule=data)
    made.test(model, datamodule=data, verbose=False)
    return figure


def test_pictures_and_numbers_lie_in_the_run_folder(tmp_path: Path) -> None:
    run(tmp_path)
    names = ["step_000002.png", "step_000004.png", "test.png"]
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == names
    assert (tmp_path / "figures" / "test.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((tmp_path / FILE).read_text())["metrics"]
    assert metrics["val/count"] == 6
    assert metrics["test/count"] == 7
    assert metrics["test/slope"] == 2


def test_draws_follow_from_the_seed(tmp_path: Path) -> None:
    first, second = run(tmp_path / "one"), run(tmp_path / "two")
    assert all(torch.equal(a, b) for a, b in zip(first.drawn, second.drawn, strict=True))
    metrics = [json.loads((tmp_path / name / FILE).read_text())["metrics"] for name in ("one", "two")]
    assert metrics[0]["test/random"] == metrics[1]["test/random"]


def test_a_model_it_is_not_made_for_is_refused(tmp_path: Path) -> None:
    plain = image_model()
    other = AmortisedLearning(plain.generative, plain.learning)
    with pytest.raises(UserError, match="Scatter, which is made for ImageModel, but the model is AmortisedLearning"):
        trainer(tmp_path, [Scatter()]).fit(other, datamodule=Images())


def test_a_dry_run_draws_nothing(tmp_path: Path) -> None:
    trainer(tmp_path, [Scatter()], fast_dev_run=1, max_steps=1).fit(image_model(), datamodule=Images())
    assert not (tmp_path / "figures").exists()
