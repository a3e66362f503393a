"""Checkpoints of a run: ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt`` in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

FOLDER = "checkpoints"


class RunCheckpoint(ModelCheckpoint):
    """Keeps the last checkpoint and the best one by a monitored figure; saved whenever the validation has run.

    Args:
        monitor: a logged figure, such as ``val/fid_samples`` or ``val/log_likelihood``.
        mode: whether the least or the greatest is the best.
    """

    def __init__(self, monitor: str | None = "val/fid_samples", mode: Literal["min", "max"] = "min") -> None:
        # One file name and no version counter: `best.ckpt` is replaced, and a resumed run finds its own files.
        super().__init__(
            filename="best", monitor=monitor, mode=mode, save_last=True, save_top_k=1, enable_version_counter=False
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Place the files in the run folder."""
        self.dirpath = str(Path(trainer.default_root_dir) / FOLDER)
        super().setup(trainer, pl_module, stage)
