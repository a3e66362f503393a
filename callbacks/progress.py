"""What is seen while a run trains: the progress bar, and its speed in real observations per second."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar without a version number, and without an end where training goes by steps."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The logged figures of this bar; every run has a folder of its own, so no version number."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning writes "Epoch 4/-2" where max_epochs is -1.
        steps = self.trainer.max_steps
        return f"Epoch {current_epoch}, step {self.trainer.global_step}" + (f"/{steps}" if steps > 0 else "")


class Throughput(Callback):
    """Logs ``samples_per_second``, real observations over all ranks, between two measurements, validation left out.

    Args:
        every_n_steps: how often.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        self.every_n_steps = every_n_steps
        self._observations = 0
        self._seconds = 0.0
        self._batch_started = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._batch_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it, and log every so many batches."""
        self._seconds += time.monotonic() - self._batch_started
        self._observations += len(batch) * trainer.world_size
        if (batch_idx + 1) % self.every_n_steps == 0 and self._seconds > 0:
            pl_module.log("samples_per_second", self._observations / self._seconds, prog_bar=True)
            self._observations, self._seconds = 0, 0.0
