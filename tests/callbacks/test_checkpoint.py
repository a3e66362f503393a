"""The checkpoints of a run: their names, which is the best, and that the last is the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from runs import Images, image_model, named, trainer

from callbacks import FIDKID, LogLikelihood
from callbacks.checkpoint import RunCheckpoint
from lightning_alws.errors import UserError

BATCHES = 4  # an epoch of Images


class Figure(pl.Callback):
    """Logs the next figure of a list in each validation, and keeps the parameters of that moment."""

    def __init__(self, figures: list[float]) -> None:
        self.figures, self.validations = figures, 0
        self.parameters: list[dict[str, torch.Tensor]] = []

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        pl_module.log("val/figure", self.figures[self.validations])
        self.validations += 1
        self.parameters.append(named(pl_module))


def load(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "checkpoints").iterdir())


def fit(folder: Path, figures: list[float], mode: str = "min", **changes: Any) -> Figure:
    figure = Figure(figures)
    callbacks = [figure, RunCheckpoint("val/figure", mode)]  # type: ignore[arg-type]
    settings = {"max_steps": len(figures), "val_check_interval": 1, "check_val_every_n_epoch": None, "max_epochs": -1}
    trainer(folder, callbacks, **(settings | changes)).fit(image_model(learning_rate=0.1), datamodule=Images())
    return figure


@pytest.mark.parametrize(
    ("figures", "mode", "best"),
    [
        ([3.0, 1.0, 2.0], "min", 2),
        ([3.0, 1.0, 2.0], "max", 1),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "max", 6),
        ([float("nan"), 2.0, 3.0], "min", 2),
        ([2.0, float("nan"), 3.0], "min", 1),
    ],
)
def test_best_by_the_figure_and_the_last(tmp_path: Path, figures: list[float], mode: str, best: int) -> None:
    figure = fit(tmp_path, figures, mode)
    assert names(tmp_path) == ["best.ckpt", "last.ckpt"]
    assert load(tmp_path, "best")["global_step"] == best
    assert load(tmp_path, "last")["global_step"] == len(figures)
    for name, value in figure.parameters[best - 1].items():
        assert torch.equal(load(tmp_path, "best")["state_dict"][name], value)


class Steps(pl.Callback):
    """Which steps the checkpoints are of, at the start of each batch: what a killed run would leave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[dict[str, int]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        there = names(self.folder) if (self.folder / "checkpoints").exists() else []
        self.seen.append({name: load(self.folder, name[:-5])["global_step"] for name in there})


@pytest.mark.parametrize("interval", [2, None])
def test_the_last_is_saved_after_every_validation_be_it_the_best_or_not(tmp_path: Path, interval: int | None) -> None:
    """Validated every two steps, or after each epoch; the figure gets worse from the first validation on."""
    every = interval or BATCHES
    steps, figure = Steps(tmp_path), Figure([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    changes = {} if interval is None else {"val_check_interval": interval, "check_val_every_n_epoch": None}
    run = trainer(tmp_path, [figure, RunCheckpoint("val/figure"), steps], max_steps=12, max_epochs=-1, **changes)
    run.fit(image_model(), datamodule=Images())
    for step, seen in enumerate(steps.seen):
        last = step // every * every
        assert seen == ({"best.ckpt": every, "last.ckpt": last} if last else {}), step


def test_saved_where_training_ended_between_two_validations(tmp_path: Path) -> None:
    figure = fit(tmp_path, [1.0, 2.0, 3.0], max_steps=7, val_check_interval=3)
    assert figure.validations == 2
    assert load(tmp_path, "best")["global_step"] == 3
    assert load(tmp_path, "last")["global_step"] == 7


def test_without_a_figure_both_are_the_latest(tmp_path: Path) -> None:
    callbacks = [RunCheckpoint(monitor=None)]
    run = trainer(tmp_path, callbacks, max_steps=6, val_check_interval=3, check_val_every_n_epoch=None)
    run.fit(image_model(), datamodule=Images())
    assert names(tmp_path) == ["best.ckpt", "last.ckpt"]
    assert load(tmp_path, "best")["global_step"] == load(tmp_path, "last")["global_step"] == 6


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_without_validation_the_end_is_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path, [RunCheckpoint("val/figure")], max_steps=3, limit_val_batches=0)
    run.fit(image_model(), datamodule=Images())
    assert load(tmp_path, "last")["global_step"] == 3


def test_a_resumed_run_goes_on_and_knows_its_best(tmp_path: Path) -> None:
    fit(tmp_path, [2.0, 1.0, 3.0])
    best = (tmp_path / "checkpoints" / "best.ckpt").read_bytes()
    figure, checkpoint = Figure([1.5, 1.2, 0.5]), RunCheckpoint("val/figure")
    changes: dict[str, Any] = {"val_check_interval": 1, "check_val_every_n_epoch": None, "max_epochs": -1}
    last = tmp_path / "checkpoints" / "last.ckpt"
    trainer(tmp_path, [figure, checkpoint], max_steps=5, **changes).fit(
        image_model(learning_rate=0.1), datamodule=Images(), ckpt_path=last
    )
    assert figure.validations == 2
    assert (tmp_path / "checkpoints" / "best.ckpt").read_bytes() == best  # 1.0 of the first session
    assert load(tmp_path, "last")["global_step"] == 5
    trainer(tmp_path, [figure, RunCheckpoint("val/figure")], max_steps=6, **changes).fit(
        image_model(learning_rate=0.1), datamodule=Images(), ckpt_path=last
    )
    assert names(tmp_path) == ["best.ckpt", "last.ckpt"]
    assert load(tmp_path, "best")["global_step"] == load(tmp_path, "last")["global_step"] == 6


def test_resumes_from_a_folder_given_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A relative folder is the same folder: the best of the first session is not forgotten."""
    fit(tmp_path, [1.0, 3.0])
    monkeypatch.chdir(tmp_path.parent)
    figure, checkpoint = Figure([2.0]), RunCheckpoint("val/figure")
    changes: dict[str, Any] = {"val_check_interval": 1, "check_val_every_n_epoch": None, "max_epochs": -1}
    trainer(Path(tmp_path.name), [figure, checkpoint], max_steps=3, **changes).fit(
        image_model(), datamodule=Images(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt"
    )
    assert load(tmp_path, "best")["global_step"] == 1
    assert not [w for w in recwarn if "dirpath has changed" in str(w.message)]


def test_an_unknown_figure_is_named(tmp_path: Path) -> None:
    run = trainer(tmp_path, [RunCheckpoint("val/no_such_figure")], max_steps=4)
    with pytest.raises(UserError, match="val/no_such_figure.*name one of .*val/objective"):
        run.fit(image_model(), datamodule=Images())


@pytest.mark.parametrize(
    ("monitor", "off", "setting"),
    [
        ("auto", FIDKID(val_samples=0), "monitor is val/fid_samples, but fid_kid.val_samples is 0"),
        ("val/kid_means", FIDKID(val_samples=0), "monitor is val/kid_means, but fid_kid.val_samples is 0"),
        ("val/log_likelihood", LogLikelihood(val_samples=0), "likelihood, but log_likelihood.val_samples is 0"),
    ],
)
def test_a_figure_that_is_switched_off_is_named_before_the_first_step(
    tmp_path: Path, monitor: str, off: pl.Callback, setting: str
) -> None:
    model = image_model()
    run = trainer(tmp_path, [off, RunCheckpoint(monitor)])
    with pytest.raises(UserError, match=setting):
        run.fit(model, datamodule=Images())
    assert run.global_step == 0


class Measuring(Figure):
    """Logs what another callback was told not to."""

    def measure(self) -> None:
        pass

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("val/log_likelihood", self.figures[0])


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_a_figure_that_another_measures_is_no_mistake(tmp_path: Path) -> None:
    callbacks = [LogLikelihood(val_samples=0), Measuring([1.0]), RunCheckpoint("val/log_likelihood")]
    trainer(tmp_path, callbacks).fit(image_model(), datamodule=Images())
    assert load(tmp_path, "best")["global_step"] == BATCHES
    # And where nothing is validated, no figure is missed.
    callbacks = [FIDKID(val_samples=0), RunCheckpoint("auto")]
    trainer(tmp_path / "none", callbacks, limit_val_batches=0).fit(image_model(), datamodule=Images())
    assert load(tmp_path / "none", "last")["global_step"] == BATCHES


@pytest.mark.parametrize("case", ["fast_dev_run", "test", "validate"])
def test_saves_nothing_outside_of_a_run(tmp_path: Path, case: str) -> None:
    run = trainer(tmp_path, [RunCheckpoint(monitor=None)], fast_dev_run=case == "fast_dev_run")
    if case == "fast_dev_run":
        run.fit(image_model(), datamodule=Images())
    else:
        getattr(run, case)(image_model(), datamodule=Images(), verbose=False)
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_is_data_alone(tmp_path: Path) -> None:
    """Nothing in it is code, and the averaged weights, the kernel and Adam's state are in it."""
    run = trainer(tmp_path, [RunCheckpoint(monitor=None)])
    run.fit(image_model(averaging=0.9), datamodule=Images())
    checkpoint = load(tmp_path, "last")
    assert any(name.startswith("averaged.") for name in checkpoint["state_dict"])
    assert "regression.kernel.log_bandwidth" in checkpoint["state_dict"]
    assert int(checkpoint["optimizer_states"][0]["state"][0]["step"]) == 4


def test_without_validation_every_epoch_is_saved(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    run = trainer(tmp_path, [RunCheckpoint("val/figure"), steps], max_steps=9, max_epochs=-1, limit_val_batches=0)
    run.fit(image_model(), datamodule=Images())
    assert [seen.get("last.ckpt") for seen in steps.seen] == [None] * 4 + [4] * 4 + [8]
    assert load(tmp_path, "last")["global_step"] == 9


def test_files_of_the_same_names_are_replaced(tmp_path: Path) -> None:
    """And never get a number: ``best`` would then be an older one."""
    for steps in (1, 2):
        fit(tmp_path, [1.0] * steps)
        assert names(tmp_path) == ["best.ckpt", "last.ckpt"]
        assert load(tmp_path, "last")["global_step"] == steps
