"""Curves of the few scalars that a model names as worth watching."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback

from lightning_alws.errors import check_at_least


class ParameterTraces(Callback):
    """Logs ``parameters/NAME`` for each of the model's ``watched()`` scalars, such as noise scales.

    Args:
        every_n_steps: how often.

    Raises:
        UserError: ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        check_at_least("traces", every_n_steps=(every_n_steps, 1))
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log them, every so many steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._log(pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log them as they ended, for ``results.json``."""
        self._log(pl_module)

    @staticmethod
    @torch.no_grad()
    def _log(pl_module: pl.LightningModule) -> None:
        model: Any = getattr(pl_module, "evaluation_model", None)
        for name, value in (model.watched() if model is not None else {}).items():
            pl_module.log(f"parameters/{name}", value.detach().float(), sync_dist=True)
