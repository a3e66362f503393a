"""Checkpoints of a run: ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt`` in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from lightning_alws.errors import UserError

FOLDER = "checkpoints"


class RunCheckpoint(ModelCheckpoint):
    """Keeps the last checkpoint and the best one by a monitored figure; saved whenever the validation has run.

    Args:
        monitor: a logged figure, such as ``val/fid_samples`` or ``val/log_likelihood``; "auto" is the former for images
            and nothing for other data (the last checkpoint is then the best); null for nothing.
        mode: whether the least or the greatest is the best.
    """

    def __init__(self, monitor: str | None = "auto", mode: Literal["min", "max"] = "min") -> None:
        # One file name and no version counter: `best.ckpt` is replaced, and a resumed run finds its own files.
        super().__init__(
            filename="best", monitor=monitor, mode=mode, save_last=True, save_top_k=1, enable_version_counter=False
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Place the files in the run folder."""
        if self.monitor == "auto":
            self.monitor = "val/fid_samples" if hasattr(trainer.datamodule, "images") else None  # type: ignore[attr-defined]
        self.dirpath = str((Path(trainer.default_root_dir) / FOLDER).resolve())
        super().setup(trainer, pl_module, stage)

    # Lightning saves the last checkpoint only where the best one was replaced: a run that is killed after hours
    # without a new best would lose them.

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the epoch, where Lightning does so rather than after the validation."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the validation."""
        figures = trainer.callback_metrics
        idle = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.monitor not in {None, *figures} and not idle:
            raise UserError(
                f"checkpoint.monitor is {self.monitor}, which the validation does not log; name one of "
                f"{', '.join(sorted(name for name in figures if name.startswith('val/')))}, or null for none."
            )
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where training ended, be it between two validations; Lightning does so only if it never saved before."""
        self._save_last(trainer)

    def _save_last(self, trainer: pl.Trainer) -> None:
        """Save ``last.ckpt`` unless this step is saved already."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
