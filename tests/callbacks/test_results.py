"""``results.json``: the status, the figures, the wall time, and a file that is never half-written."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from runs import METHODS, Images, image_model, trainer

from callbacks import results
from callbacks.checkpoint import RunCheckpoint
from callbacks.results import ResultsFile
from lightning_alws.errors import UserError


def read(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "results.json").read_text(), parse_constant=refuse)


class Action(pl.Callback):
    """Calls a function after a training batch, and after a test batch."""

    def __init__(self, act: Any, batch: int = 0) -> None:
        self.act, self.batch = act, batch

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batch:
            self.act()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == "validate":
            self.act()


class Figures(pl.Callback):
    """A figure of the test, and where it comes from."""

    def __init__(self, figure: float = 0.5, **provenance: Any) -> None:
        self.figure, self._provenance = figure, provenance

    def provenance(self) -> dict[str, Any]:
        return self._provenance

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("train/figure", self.figure)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("test/figure", self.figure)


class Early(pl.Callback):
    """A figure that is measured after the second step only."""

    def __init__(self, figure: float) -> None:
        self.figure = figure

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            pl_module.log("early", self.figure)


def raising(exception: BaseException) -> Any:
    def act() -> None:
        raise exception

    return act


@pytest.fixture
def _interrupts() -> Iterator[None]:
    """Lightning ignores SIGINT from its first interrupt on."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_running_then_fitted_then_tested(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    model, callbacks = image_model(), [ResultsFile(), Action(lambda: seen.append(read(tmp_path))), Figures()]
    run = trainer(tmp_path, callbacks, max_steps=4)
    run.fit(model, datamodule=Images())
    assert seen[0]["status"] == "running"
    fitted = read(tmp_path)
    assert fitted["status"] == "fitted"
    assert fitted["training"] == {"steps": 4, "epochs": 1, "seconds": pytest.approx(0, abs=60), "skipped_steps": 0}
    assert {"train/objective", "train/figure", "val/objective"} <= set(fitted["metrics"])
    assert (fitted["model"], fitted["data"], fitted["seed"]) == ("ImageModel", "Images", 0)
    assert torch.__version__.startswith(fitted["versions"]["torch"])
    assert fitted["machine"]["processes"] == 1
    assert "error" not in fitted

    run.test(model, datamodule=Images(), verbose=False)
    tested = read(tmp_path)
    assert tested["status"] == "tested"
    assert tested["metrics"] == {**fitted["metrics"], "test/figure": 0.5}
    assert tested["training"] == fitted["training"]


def test_tested_by_another_process_later(tmp_path: Path) -> None:
    """Another trainer, another model object: figures and time of the training stay."""
    run = trainer(tmp_path, [ResultsFile(), RunCheckpoint(monitor=None), Figures(0.25)], max_steps=3)
    run.fit(image_model(), datamodule=Images())
    fitted = read(tmp_path)
    later = trainer(tmp_path, [ResultsFile(), Figures(0.5)])
    later.test(image_model(), datamodule=Images(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", verbose=False)
    tested = read(tmp_path)
    assert tested["status"] == "tested"
    assert tested["training"] == fitted["training"]
    assert tested["metrics"] == {**fitted["metrics"], "test/figure": 0.5}


def test_a_test_of_its_own_gives_the_training_of_the_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path / "a", [ResultsFile(), RunCheckpoint(monitor=None)], max_steps=6)
    run.fit(image_model(), datamodule=Images())
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    later = trainer(tmp_path / "b", [ResultsFile(), Figures()])
    later.test(image_model(), datamodule=Images(), ckpt_path=last, verbose=False)
    results = read(tmp_path / "b")
    assert (results["training"]["steps"], results["training"]["epochs"]) == (6, 1)
    assert set(results["metrics"]) == {"test/figure"}


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    action = Action(raising(UserError("raise the ridge\nand more")), batch=2)
    with pytest.raises(UserError):
        trainer(tmp_path, [ResultsFile(), action]).fit(image_model(), datamodule=Images())
    results = read(tmp_path)
    assert results["status"] == "failed"
    assert results["error"] == "UserError: raise the ridge"
    assert results["training"]["steps"] == 3
    assert "train/objective" in results["metrics"]
    # Taken up again, it is no longer a failed one.
    trainer(tmp_path, [ResultsFile()]).fit(image_model(), datamodule=Images())
    assert read(tmp_path)["status"] == "fitted"
    assert "error" not in read(tmp_path)


def test_a_run_that_fails_in_a_validation_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model()
    monkeypatch.setattr(model, "validation_step", lambda *_: raising(ValueError("no figures"))())
    with pytest.raises(ValueError, match="no figures"):
        trainer(tmp_path, [ResultsFile()], val_check_interval=2).fit(model, datamodule=Images())
    results = read(tmp_path)
    assert (results["status"], results["error"]) == ("failed", "ValueError: no figures")
    assert results["training"]["steps"] == 2


@pytest.mark.parametrize("content", ["", "{half", "[]", '{"training": null}'])
def test_a_damaged_record_costs_no_run(tmp_path: Path, content: str) -> None:
    """The figures of the training come from the checkpoint."""
    last = tmp_path / "checkpoints" / "last.ckpt"
    callbacks = [Early(0.25), ResultsFile(), RunCheckpoint(monitor=None)]
    trainer(tmp_path, callbacks).fit(image_model(), datamodule=Images())
    (tmp_path / "results.json").write_text(content)
    with pytest.warns(UserWarning, match=r"results\.json is damaged; its record is begun anew"):
        trainer(tmp_path, [ResultsFile(), RunCheckpoint(monitor=None)], max_steps=5, max_epochs=-1).fit(
            image_model(), datamodule=Images(), ckpt_path=last
        )
    record = read(tmp_path)
    assert (record["status"], record["training"]["steps"], record["metrics"]["early"]) == ("fitted", 5, 0.25)


@pytest.mark.usefixtures("_interrupts")
def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    action = Action(raising(KeyboardInterrupt()), batch=1)
    with pytest.raises(SystemExit):
        trainer(tmp_path, [ResultsFile(), action]).fit(image_model(), datamodule=Images())
    assert read(tmp_path)["status"] == "interrupted"
    assert read(tmp_path)["training"]["steps"] == 2


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_what_fails_outside_of_a_run_changes_nothing(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = image_model()
    trainer(tmp_path, [ResultsFile(), Figures()]).fit(model, datamodule=Images())
    before = read(tmp_path)
    later = trainer(tmp_path, [ResultsFile(), Action(raising(ValueError("a mistake")))])
    monkeypatch.setattr(model, "predict_step", raising(ValueError("a mistake")))
    with pytest.raises((ValueError, TypeError)):
        getattr(later, command)(model, datamodule=Images())
    assert read(tmp_path) == before


def test_a_failing_test_keeps_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model()
    trainer(tmp_path, [ResultsFile(), Figures()]).fit(model, datamodule=Images())
    before = read(tmp_path)

    def fail(*_: Any) -> None:
        raise ValueError("no figures")

    monkeypatch.setattr(Figures, "on_test_epoch_end", fail)
    with pytest.raises(ValueError, match="no figures"):
        trainer(tmp_path, [ResultsFile(), Figures()]).test(model, datamodule=Images(), verbose=False)
    after = read(tmp_path)
    assert (after["status"], after["error"]) == ("failed", "ValueError: no figures")
    assert (after["training"], after["metrics"]) == (before["training"], before["metrics"])


class Clock:
    """Ten seconds pass in each training batch, a thousand in a test."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Ticking(pl.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.now += 10

    def on_test_start(self, *_: Any) -> None:
        self.clock.now += 1000


def test_wall_time_accumulates_over_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("callbacks.results.time", SimpleNamespace(monotonic=clock.monotonic))

    def session(steps: int, checkpoint: Path | None) -> dict[str, Any]:
        callbacks = [Ticking(clock), RunCheckpoint(monitor=None), ResultsFile()]
        run, model = trainer(tmp_path, callbacks, max_steps=steps), image_model()
        run.fit(model, datamodule=Images(), ckpt_path=checkpoint)
        run.test(model, datamodule=Images(), verbose=False)
        return read(tmp_path)["training"]

    last = tmp_path / "checkpoints" / "last.ckpt"
    assert session(4, None)["seconds"] == 40
    clock.now += 1e6  # the machine was off
    assert session(8, last)["seconds"] == 80
    assert session(12, last) == {"steps": 12, "epochs": 3, "seconds": 120, "skipped_steps": 0}


def test_figures_measured_before_a_kill_come_back_with_the_checkpoint(tmp_path: Path) -> None:
    def session(steps: int, figure: float, checkpoint: Path | None) -> None:
        callbacks = [Early(figure), RunCheckpoint(monitor=None), ResultsFile()]
        trainer(tmp_path, callbacks, max_steps=steps).fit(image_model(), datamodule=Images(), ckpt_path=checkpoint)

    last = tmp_path / "checkpoints" / "last.ckpt"
    session(4, 0.25, None)
    begun = {**read(tmp_path), "status": "running", "metrics": {}}
    (tmp_path / "results.json").write_text(json.dumps(begun))  # as a process leaves it that is killed outright
    session(6, math.nan, last)
    session(8, math.nan, last)  # from a checkpoint that was itself made by a resumed run
    assert read(tmp_path)["metrics"]["early"] == 0.25
    session(6, 0.5, None)
    assert read(tmp_path)["metrics"]["early"] == 0.5  # a new run knows nothing of it


@pytest.mark.filterwarnings("ignore:step .* skipped")
def test_skipped_steps_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model()
    original = model.regression.fit

    def fit(x: torch.Tensor, wake: torch.Tensor | None = None) -> Any:
        fitted = original(x)
        fitted.failure = "a failure was planted" if model.trainer.fit_loop.total_batch_idx in (0, 2) else None
        return fitted

    monkeypatch.setattr(model.regression, "fit", fit)
    trainer(tmp_path, [ResultsFile()], limit_val_batches=0).fit(model, datamodule=Images())
    assert read(tmp_path)["training"]["skipped_steps"] == 2


@pytest.mark.parametrize(("figure", "name"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_figures_that_are_no_numbers_are_named(tmp_path: Path, figure: float, name: str) -> None:
    """In the metrics and in what callbacks say of them: no reader of JSON takes NaN."""
    callbacks = [ResultsFile(), Figures(figure, error={"standard_error": figure, "counts": [1, figure], "by": "hand"})]
    trainer(tmp_path, callbacks).test(image_model(), datamodule=Images(), verbose=False)
    results = read(tmp_path)
    assert results["metrics"]["test/figure"] == name
    assert results["provenance"] == {"error": {"standard_error": name, "counts": [1, name], "by": "hand"}}


def test_provenance_of_all_callbacks_is_kept_from_training_to_test(tmp_path: Path) -> None:
    model, data = image_model(), Images()
    trainer(tmp_path, [ResultsFile(), Figures(a={"count": 1}), Figures(b=2)]).fit(model, datamodule=data)
    assert read(tmp_path)["provenance"] == {"a": {"count": 1}, "b": 2}
    trainer(tmp_path, [ResultsFile(), Figures(b=3)]).test(model, datamodule=data, verbose=False)
    assert read(tmp_path)["provenance"] == {"a": {"count": 1}, "b": 3}


def test_a_figure_is_not_replaced_by_one_that_rests_on_less(tmp_path: Path) -> None:
    data, last = Images(), tmp_path / "checkpoints" / "last.ckpt"

    def tested(figure: float, **provenance: Any) -> dict[str, Any]:
        callbacks = [ResultsFile(), Figures(figure, **provenance)]
        trainer(tmp_path, callbacks).test(image_model(), datamodule=data, ckpt_path=last, verbose=False)
        results = read(tmp_path)
        assert results["status"] == "tested"
        return {name: results[name] for name in ("tested_step", "provenance")} | results["metrics"]

    def trained(steps: int, checkpoint: Path | None = None) -> None:
        run = trainer(tmp_path, [ResultsFile(), RunCheckpoint(monitor=None)], max_steps=steps)
        run.fit(image_model(), datamodule=data, ckpt_path=checkpoint)

    trained(3)
    assert "tested_step" not in read(tmp_path)
    best = tested(0.5, part={"samples": 100, "method": "one", "seed": 4, "error": 0.3})
    assert (best["test/figure"], best["tested_step"]) == (0.5, 3)
    with pytest.warns(UserWarning, match=r"part.samples is 99 in this test, but 100 in the one .* \(test/figure\)"):
        assert tested(0.7, part={"samples": 99, "method": "one", "seed": 5, "error": 0.1}) == best
    # As many, with another seed, or another method: replaced.
    assert tested(0.8, part={"samples": 100, "method": "one", "seed": 3})["test/figure"] == pytest.approx(0.8)
    assert tested(0.9, part={"samples": 5, "method": "two", "seed": 3})["test/figure"] == pytest.approx(0.9)
    # Trained for longer, measured by less: another model's figures.
    trained(5, last)
    assert read(tmp_path)["tested_step"] == 3
    later = tested(0.1, part={"samples": 2, "method": "two"})
    assert later["test/figure"] == pytest.approx(0.1)
    assert (later["tested_step"], later["provenance"]["part"]["samples"]) == (5, 2)


@pytest.mark.filterwarnings("ignore:.*whose figures are kept")
def test_parts_are_kept_by_themselves() -> None:
    """The likelihood rests on less, the distances on as much; a count of validation images says nothing of a test."""
    metrics = {"test/log_likelihood": -1.0, "test/fid_means": 2.0, "test/other": 3.0, "val/fid_means": 4.0}
    provenance = {
        "fid_kid": {"images_compared": {"val": 9, "test": 10}},
        "log_likelihood": {"method": "prior samples", "samples_per_image": 50},
        "log_likelihood_encoder": {"samples_per_image": 7},
        "a": {"count": 3},
        "b": 4,
    }
    new = dict.fromkeys(metrics, 0.0) | {"test/log_likelihood_gap": 0.0, "test/log_likelihood_encoder": 0.0}
    made = {
        "fid_kid": {"images_compared": {"val": 2, "test": 10}},
        "log_likelihood": {"method": "prior samples", "samples_per_image": 5},
        "log_likelihood_encoder": {"samples_per_image": 7},
        "a": {"count": 5},
        "b": 3,
        "c": 1,
    }
    results.keep_better(metrics, provenance, new, made)
    assert set(new) == {"test/fid_means", "val/fid_means", "test/log_likelihood_encoder"}
    assert set(made) == {"fid_kid", "log_likelihood_encoder", "c"}


def test_is_never_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model()
    run = trainer(tmp_path, [ResultsFile()])
    run.fit(model, datamodule=Images())
    before = (tmp_path / "results.json").read_bytes()

    def half(content: Any, file: Any, **_: Any) -> None:
        file.write('{"status": "te')
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_alws.files.json.dump", half)
    with pytest.raises(OSError, match="No space left"):
        run.test(model, datamodule=Images(), verbose=False)
    assert (tmp_path / "results.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_parameters_that_are_trained_are_counted(tmp_path: Path, averaging: float) -> None:
    """An MLP of 2, 6 and 64 units; a kernel whose features are trained too; no averaged copies."""
    model = image_model(averaging=averaging, **METHODS["AL-A"])
    model.generative.decoder.net[0][0].bias.requires_grad_(False)
    trainer(tmp_path, [ResultsFile()]).test(model, datamodule=Images(), verbose=False)
    generative = 2 * 6 + 6 * 64 + 64
    kernel = sum(p.numel() for p in model.regression.parameters() if p.requires_grad)
    assert kernel > 64 * 3
    assert read(tmp_path)["parameters"] == {"total": generative + kernel, "generative": generative}


def test_peak_memory_is_that_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In megabytes: this process surely holds more than ten and less than a hundred thousand."""
    run, model = trainer(tmp_path, [ResultsFile()]), image_model()
    run.fit(model, datamodule=Images())
    fitted = read(tmp_path)
    assert 10 < fitted["peak_memory_mb"] < 1e5
    assert "resident set" in fitted["peak_memory_of"]
    monkeypatch.setattr("callbacks.results._memory", lambda device: (1e6, "resident set"))
    run.test(model, datamodule=Images(), verbose=False)
    assert read(tmp_path)["peak_memory_mb"] == fitted["peak_memory_mb"]
    trainer(tmp_path / "alone", [ResultsFile()]).test(model, datamodule=Images(), verbose=False)
    assert read(tmp_path / "alone")["peak_memory_mb"] == 1e6


def test_memory_of_a_device_is_what_its_tensors_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    assert results._memory(torch.device("cuda", 0)) == (3.0, "CUDA memory allocated by tensors")


def test_a_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    trainer(tmp_path, [ResultsFile()], fast_dev_run=True).fit(image_model(), datamodule=Images())
    assert list(tmp_path.iterdir()) == []


def test_runs_without_a_data_module(tmp_path: Path) -> None:
    loader = Images().train_dataloader()
    trainer(tmp_path, [ResultsFile()], limit_val_batches=0).fit(image_model(), loader)
    assert read(tmp_path)["status"] == "fitted"
