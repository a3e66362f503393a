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

from callbacks.signals import Interrupted
from lightning_alws.files import write_json
from lightning_alws.noise import global_seed

FILE = "results.json"
PACKAGES = ("alws", "torch", "torchvision", "pytorch-lightning", "torchmetrics")


class ResultsFile(Callback):
    """Writes ``results.json`` in the run folder: status, figures, their provenance, steps, seconds, parameters, memory.

    The status is ``running``, then ``fitted`` and ``tested``, or ``failed`` and ``interrupted``. Other callbacks add
    what a figure needs to be understood (counts, extractor) by a method ``provenance() -> dict``.
    """

    def __init__(self) -> None:
        self._seconds_before = 0.0
        self._started: float | None = None
        self._loaded: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """The wall time so far, so that a resumed run counts all of it."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the wall time."""
        self._seconds_before = state["seconds"]

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
        if trainer.state.fn in ("validate", "predict"):
            return
        status = "interrupted" if isinstance(exception, KeyboardInterrupt | Interrupted) else "failed"
        first_line = next(iter(str(exception).splitlines()), "")
        with contextlib.suppress(OSError):  # a full disk: the exception at hand says more
            self._write(trainer, pl_module, status, error=f"{type(exception).__name__}: {first_line}")

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, status: str, error: str | None = None) -> None:
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        path = Path(trainer.default_root_dir) / FILE
        before = json.loads(path.read_text()) if path.exists() else {}
        testing = trainer.state.fn == "test"
        metrics = {
            **before.get("metrics", {}),
            **{name: _finite(float(value)) for name, value in sorted(trainer.callback_metrics.items())},
        }
        provenance = dict(before.get("provenance", {}))
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "provenance"):
                provenance.update(_finite(callback.provenance()))
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
                "seed": global_seed(),
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
