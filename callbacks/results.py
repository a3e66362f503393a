"""``results.json``: what a run was, how far it got, and every final figure."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from callbacks.signals import Interrupted
from lightning_alws.errors import UserError, raised_in_child
from lightning_alws.files import write_json
from lightning_alws.memory import memory_sentence
from lightning_alws.noise import global_seed

FILE = "results.json"
# How the names of figures begin that rest on a part of the provenance; the first that fits counts.
FIGURES = {
    "log_likelihood_encoder": ("log_likelihood_encoder", "effective_samples_encoder"),
    "log_likelihood": ("log_likelihood", "effective_samples"),
    "fid_kid": ("fid_", "kid_"),
}
SKIPPED_NAMED = 20  # files left out of the data that are named, beside their number
PARTS = ("training", "provenance")
NO_COUNTS = ("seed", "val")  # whole numbers that a test may have less of
PACKAGES = ("alws", "torch", "torchvision", "pytorch-lightning", "torchmetrics")


class ResultsFile(Callback):
    """Writes ``results.json`` in the run folder: status, figures, their provenance, steps, seconds, parameters, memory.

    The status is ``running``, then ``fitted`` and ``tested``, or ``failed`` and ``interrupted``. Other callbacks add
    what a figure needs to be understood (counts, extractor) by a method ``provenance() -> dict``.

    A test of the checkpoint that was tested before replaces no figure that rests on more samples than its own; a test
    of another checkpoint replaces them all. ``tested_step`` tells which one the test's figures are of.

    The training's last figures lie in its checkpoints as well: a run that was killed outright has written here only how
    it began, and what is measured every so many steps may not be due again before it ends.
    """

    def __init__(self) -> None:
        self._seconds_before = 0.0
        self._started: float | None = None
        self._loaded: dict[str, int] = {}
        self._figures: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The wall time so far, so that a resumed run counts all of it."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the wall time, and figures of the training where the checkpoint has them."""
        self._seconds_before = state["seconds"]
        self._figures = state.get("figures", {})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the figures measured so far, by this session and those before, beside the wall time."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint["callbacks"][self.state_key]["figures"] = {**self._figures, **logged}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember how far a loaded model was trained: in a test of its own, the trainer has taken no step."""
        self._loaded = {"steps": checkpoint["global_step"], "epochs": checkpoint["epoch"]}

    @property
    def seconds(self) -> float:
        """Wall time of training, over all sessions of the run."""
        return self._seconds_before + (time.monotonic() - self._started if self._started is not None else 0.0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that the run has begun; an attempt that failed before its first checkpoint is forgotten."""
        self._started = time.monotonic()
        if trainer.ckpt_path is None and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            (Path(trainer.default_root_dir) / FILE).unlink(missing_ok=True)
        self._write(trainer, pl_module, "running")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the training's last figures."""
        self._seconds_before, self._started = self.seconds, None
        self._write(trainer, pl_module, "interrupted" if trainer.interrupted else "fitted")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the test's figures beside those of the training."""
        self._write(trainer, pl_module, "tested")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A run that failed says so; commands that write nothing here when they succeed write no failure either."""
        if trainer.state.fn in ("validate", "predict") or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        stops = KeyboardInterrupt | Interrupted | SIGTERMException
        status = "interrupted" if isinstance(exception, stops) else "failed"
        name, first_line = type(exception).__name__, next(iter(str(exception).splitlines()), "")
        if not isinstance(exception, UserError):
            first_line = memory_sentence(exception) or first_line
        child = raised_in_child(exception)
        if child is not None:
            name, first_line = child
            status = "interrupted" if Interrupted.said(first_line) else "failed"
        error = f"{name}: {first_line}"
        with contextlib.suppress(OSError):  # a full disk: the exception at hand says more
            if child is None:
                self._write(trainer, pl_module, status, error)
            else:  # the trainer of this process has seen nothing of the run
                note_ending(Path(trainer.default_root_dir) / FILE, status, error)

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, status: str, error: str | None = None) -> None:
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        path = Path(trainer.default_root_dir) / FILE
        before = read_record(path)
        testing = trainer.state.fn == "test"
        metrics, provenance = dict(before.get("metrics", {})), dict(before.get("provenance", {}))
        new = {name: _finite(float(value)) for name, value in sorted(trainer.callback_metrics.items())}
        made: dict[str, Any] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "provenance"):
                made.update(_finite(callback.provenance()))
        tested_step = before.get("tested_step")
        if not testing:
            metrics.update(_finite(self._figures))
            metrics.update(new)
            provenance = _merged(provenance, made)  # a validation's counts beside those of an earlier test
        elif not error:  # a test that failed half-way has no figures
            step = self._loaded["steps"] if trainer.ckpt_path is not None else trainer.global_step  # type: ignore[attr-defined]
            if tested_step in (None, step):
                keep_better(metrics, provenance, new, made)
            else:
                metrics = {name: value for name, value in metrics.items() if not name.startswith("test/")}
            metrics.update(new)
            provenance.update(made)
            tested_step = step
        training = {
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            **(self._loaded if testing else {}),
            "seconds": round(self.seconds, 1),
            "skipped_steps": getattr(pl_module, "skipped_total", 0),
        }
        # Of the training, where there was one: a test's is its figures', whatever the method.
        peak = before.get("peak_memory_mb", 0.0)
        if not (testing and "training" in before):
            peak = max(peak, _memory(pl_module.device)[0])
        write_json(
            path,
            {
                "status": status,
                **({"error": error} if error else {}),
                "model": type(pl_module).__name__,
                "data": getattr(trainer.datamodule, "name", type(trainer.datamodule).__name__),  # type: ignore[attr-defined]
                **_skipped(trainer.datamodule),  # type: ignore[attr-defined]
                "seed": global_seed(),
                **({} if tested_step is None else {"tested_step": tested_step}),
                "training": before["training"] if testing and "training" in before else training,
                "parameters": _parameters(pl_module),
                "peak_memory_mb": peak,
                "peak_memory_of": _memory(pl_module.device)[1],
                "metrics": metrics,
                "provenance": provenance,
                "machine": {
                    "device": _device_name(pl_module.device),
                    "processes": trainer.world_size,
                    "threads": torch.get_num_threads(),
                },
                "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            },
        )


def read_record(path: Path) -> dict[str, Any]:
    """What a ``results.json`` holds; nothing where there is none, or, with a warning, where it is damaged."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        record = None
    if not isinstance(record, dict) or not all(isinstance(record.get(part, {}), dict) for part in ("metrics", *PARTS)):
        pl.utilities.rank_zero_warn(f"{path} is damaged; its record is begun anew, with what the checkpoint knows.")
        return {}
    return record


def note_ending(path: Path, status: str, error: str) -> None:
    """Change how a run ended, in its ``results.json``, and nothing else; how far it came, its checkpoint tells."""
    if path.exists():
        before = read_record(path)
        write_json(path, {"status": status, "error": error, **{k: v for k, v in before.items() if k != "status"}})


def keep_better(metrics: dict[str, Any], provenance: dict[str, Any], new: dict[str, Any], made: dict[str, Any]) -> None:
    """Drop from a test's figures, and from what they rest on, those that rest on less than the recorded ones.

    Args:
        metrics: recorded figures.
        provenance: what they rest on.
        new: the test's figures, changed in place.
        made: what these rest on, changed in place.
    """
    for part in list(made):
        if part not in made:
            continue  # left out with another
        less = _does_less(_flat(provenance.get(part)), _flat(made[part]))
        if less is None:
            continue
        setting, before, now = less
        # Of other figures nobody knows which part they rest on: they stay together, with all of what they rest on.
        parts = [part] if part in FIGURES else [other for other in made if other not in FIGURES and other in provenance]
        own = part if part in FIGURES else None
        names = [name for name in new if name.startswith("test/") and _part_of(name) == own]
        names = [name for name in names if own or name in metrics]
        for name in names:
            del new[name]
        for other in parts:
            del made[other]
        pl.utilities.rank_zero_warn(
            f"{part}.{setting} is {now} in this test, but {before} in the one recorded in {FILE}, whose figures are "
            f"kept ({', '.join(names)}); give at least as many to replace them."
        )


def _part_of(name: str) -> str | None:
    """The part of the provenance that a figure rests on; None where its name does not tell."""
    name = name.removeprefix("test/")
    return next((part for part, starts in FIGURES.items() if name.startswith(starts)), None)


def _does_less(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, int, int] | None:
    """(setting, before, now) of the first count that is smaller now; None where none is, or the method is another."""
    shared = [name for name in now if name in before]
    if any(isinstance(now[name], str) and now[name] != before[name] for name in shared):
        return None
    counts = [name for name in shared if type(now[name]) is type(before[name]) is int]
    less = (name for name in counts if now[name] < before[name] and name.rpartition(".")[2] not in NO_COUNTS)
    return next(((name, before[name], now[name]) for name in less), None)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names; a number alone as one named ``count``."""
    if not isinstance(value, dict):
        return {} if value is None else {prefix.rstrip(".") or "count": value}
    return {name: part for key, below in value.items() for name, part in _flat(below, f"{prefix}{key}.").items()}


def _merged(old: Any, new: Any) -> Any:
    """Nested dictionaries, the new one's values first."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}


def _skipped(data: Any) -> dict[str, Any]:
    """How many files of the data could not be used, the first of them, and those of formats that are not read."""
    skipped, formats = getattr(data, "skipped_files", []), getattr(data, "skipped_formats", {})
    files = {"skipped_files": {"count": len(skipped), "first": skipped[:SKIPPED_NAMED]}} if skipped else {}
    return {**files, **({"skipped_formats": formats} if formats else {})}


def _parameters(pl_module: pl.LightningModule) -> dict[str, int]:
    """How many numbers are trained, in all and of the generative model; averaged copies are not."""

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)

    generative = getattr(pl_module, "generative", None)
    own = {"generative": count(generative)} if isinstance(generative, torch.nn.Module) else {}
    return {"total": count(pl_module), **own}


def _memory(device: torch.device) -> tuple[float, str]:
    """The most memory of this process so far, in megabytes (2²⁰ bytes), and what of: the device's, or all resident."""
    if device.type == "cuda":
        peak, kind = torch.cuda.max_memory_allocated(device) / 2**20, "CUDA memory allocated by tensors"
    else:
        # Linux counts kilobytes, macOS bytes.
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        kind = "resident set of the process, with Python and its libraries"
    return round(peak, 1), kind


def _finite(value: Any) -> Any:
    """The same with NaN and infinities, for which JSON has no number, replaced by their names."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else (platform.processor() or "cpu")
