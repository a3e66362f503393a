"""What is seen while a run trains: the progress bar, and its speed in real observations per second."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import RichProgressBar

from lightning_alws.errors import check_at_least


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar with the step, and without a version number: every run has a folder."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The step and the logged figures of this bar."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if trainer.state.fn == "fit":
            metrics = {"step": str(trainer.global_step), **metrics}
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning would write "Epoch 4/-2" where max_epochs is -1.
        return f"Epoch {current_epoch}"


class Throughput(Callback):
    """Logs ``samples_per_second``, real observations over all ranks, between two measurements, validation left out.

    Args:
        every_n_steps: batches between two measurements.

    Raises:
        UserError: ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        check_at_least("throughput", every_n_steps=(every_n_steps, 1))
        self.every_n_steps = every_n_steps
        self._batches = 0
        self._observations = 0
        self._seconds = 0.0
        self._batch_started = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._batch_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop it, and log every so many batches."""
        self._seconds += time.monotonic() - self._batch_started
        self._observations += len(batch) * trainer.world_size
        self._batches += 1  # batch_idx begins again with each epoch, which may be shorter
        if self._batches >= self.every_n_steps and self._seconds > 0:
            pl_module.log("samples_per_second", self._observations / self._seconds, prog_bar=True)
            self._batches, self._observations, self._seconds = 0, 0, 0.0
