"""The speed of a run against a clock of our own, and what the progress bar shows."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from runs import Images, forked, image_model, trainer

from callbacks.progress import ProgressBar, Throughput
from lightning_alws.errors import UserError


class Clock:
    """Two seconds pass in the first batch of a run, four in the second, …; a thousand in a validation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("callbacks.progress.time", SimpleNamespace(monotonic=lambda: self.now))


class Ticking(pl.Callback):
    """Between the start and the end of a batch as Throughput sees them: this callback comes before it."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.batches = clock, 0
        self.logged: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.batches += 1
        self.clock.now += 2 * self.batches

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if "samples_per_second" in trainer.callback_metrics:
            self.logged.append(float(trainer.callback_metrics["samples_per_second"]))

    def on_validation_start(self, *_: Any) -> None:
        self.clock.now += 1000


def test_observations_over_training_seconds_without_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 4, two a measurement, a validation after each batch."""
    ticking = Ticking(Clock(monkeypatch))
    run = trainer(tmp_path, [ticking, Throughput(2)], max_steps=4, val_check_interval=1)
    run.fit(image_model(), datamodule=Images())
    assert float(run.callback_metrics["samples_per_second"]) == pytest.approx(8 / (6 + 8))
    assert ticking.logged == pytest.approx([8 / (2 + 4)] * 2)


def test_last_batch_of_an_epoch_is_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 images in batches of 5, 5, 5, 1."""
    ticking = Ticking(Clock(monkeypatch))
    run = trainer(tmp_path, [ticking, Throughput(4)], max_steps=4)
    run.fit(image_model(), datamodule=Images(batch_size=5))
    assert float(run.callback_metrics["samples_per_second"]) == pytest.approx(16 / (2 + 4 + 6 + 8))


@pytest.mark.parametrize("every", [3, 5, 7])
def test_measured_though_epochs_are_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Four batches an epoch."""
    ticking = Ticking(Clock(monkeypatch))
    run = trainer(tmp_path, [ticking, Throughput(every)], max_steps=every, max_epochs=-1)
    run.fit(image_model(), datamodule=Images())
    seconds = sum(2 * batch for batch in range(1, every + 1))
    assert float(run.callback_metrics["samples_per_second"]) == pytest.approx(4 * every / seconds)


def test_real_clock(tmp_path: Path) -> None:
    started = time.monotonic()
    run = trainer(tmp_path, [Throughput(4)], max_steps=4)
    run.fit(image_model(), datamodule=Images())
    assert float(run.callback_metrics["samples_per_second"]) > 16 / (time.monotonic() - started)


class Write(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        (self.folder / str(trainer.global_rank)).write_text(str(float(trainer.callback_metrics["samples_per_second"])))


def test_all_processes_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of two images a batch do the work of one with four."""
    callbacks = [Ticking(Clock(monkeypatch)), Throughput(2), Write(tmp_path)]
    forked(tmp_path, callbacks, monkeypatch, max_steps=2).fit(image_model(), datamodule=Images(batch_size=2))
    assert [float((tmp_path / rank).read_text()) for rank in "01"] == pytest.approx([8 / 6] * 2)


@pytest.mark.parametrize("every", [0, -5])
def test_senseless_numbers_are_refused(every: int) -> None:
    with pytest.raises(UserError, match=f"throughput.every_n_steps is {every}"):
        Throughput(every)


class Shown(ProgressBar):
    """Remembers what it was to show in training."""

    def __init__(self) -> None:
        super().__init__()
        self.fitting: list[dict[str, Any]] = []

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        if trainer.state.fn == "fit":
            self.fitting.append(metrics)
        return metrics


def test_progress_bar_shows_the_step_and_no_version(tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version=7, default_hp_metric=False)
    bar = Shown()
    run = trainer(tmp_path, [bar], logger=logger, enable_progress_bar=True, max_epochs=-1, max_steps=6)
    model = image_model()
    assert "v_num" in pl.callbacks.ProgressBar().get_metrics(run, model)  # what Lightning would show
    run.fit(model, datamodule=Images())
    assert bar.fitting[-1]["step"] == "6"
    assert "train/objective" in bar.fitting[-1]
    assert next(iter(bar.fitting[-1])) == "step"
    assert not any("v_num" in metrics for metrics in bar.fitting)
    assert bar._get_train_description(4) == "Epoch 4"  # where Lightning's is "Epoch 4/-2"


def test_progress_bar_shows_no_step_outside_of_training(tmp_path: Path) -> None:
    bar = Shown()
    run = trainer(tmp_path, [bar], enable_progress_bar=True)
    run.test(image_model(), datamodule=Images(), verbose=False)
    run.state.fn = "test"  # type: ignore[assignment]
    assert "step" not in bar.get_metrics(run, image_model())
