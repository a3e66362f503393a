"""Checkpoints of a run: ``last.ckpt``, the one before it, and ``best.ckpt``, in ``checkpoints/`` in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from callbacks.signals import Interrupted, SignalWatch
from lightning_alws.checkpoints import remove_remnants
from lightning_alws.errors import UserError

FOLDER = "checkpoints"


class RunCheckpoint(ModelCheckpoint):
    """Keeps the last checkpoint and the best one by a monitored figure; saved whenever the validation has run.

    On Ctrl-C, SIGTERM and SIGUSR1 the batch is finished, and the validation if one is due, the last checkpoint saved,
    and :class:`~callbacks.signals.Interrupted` raised, on all ranks after the same batch. In a test, a validation by
    itself or a prediction, which save nothing, it is raised at once.

    Args:
        monitor: a logged figure, such as ``val/fid_samples`` or ``val/log_likelihood``; "auto" is the former for images
            and nothing for other data (the last checkpoint is then the best); null for nothing.
        mode: whether the least or the greatest is the best.

    Raises:
        UserError: in ``fit``, if the validation does not log the figure; before the first step where a setting such as
            ``fid_kid.val_samples`` 0 tells.
    """

    def __init__(self, monitor: str | None = "auto", mode: Literal["min", "max"] = "min") -> None:
        # One file name and no version counter: `best.ckpt` is replaced, and a resumed run finds its own files.
        super().__init__(
            filename="best", monitor=monitor, mode=mode, save_last=True, save_top_k=1, enable_version_counter=False
        )
        self._signals = SignalWatch()
        self._ending = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Place the files in the run folder."""
        if self.monitor == "auto":
            self.monitor = "val/fid_samples" if hasattr(trainer.datamodule, "images") else None  # type: ignore[attr-defined]
        self.dirpath = str((Path(trainer.default_root_dir) / FOLDER).resolve())
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a figure that another callback has been told not to measure."""
        super().on_fit_start(trainer, pl_module)
        if not trainer.enable_validation or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            off = callback.switched_off(trainer) if hasattr(callback, "switched_off") else {}
            setting = next((off[start] for start in off if str(self.monitor).startswith(start)), None)
            if setting is not None:
                raise UserError(
                    f"checkpoint.monitor is {self.monitor}, but {setting} is 0, so that no validation measures it; "
                    "raise that, or give another figure of the validation for checkpoint.monitor, such as "
                    "val/objective with checkpoint.mode max, or null for none."
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch for signals; clear away what a killed process left half-written."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            remove_remnants(Path(str(self.dirpath)))
        self._signals.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Save and end if a signal asks for it; a validation that is due comes first: a resumed run would miss it."""
        super().on_train_batch_end(trainer, pl_module, *args)
        self._ending = self._signal_on_any_rank(trainer)
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        if self._ending and not (fetcher is not None and loop._should_check_val_fx(fetcher)):
            self._end(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        super().on_exception(trainer, pl_module, exception)
        self._signals.stop()

    # Lightning saves the last checkpoint only where the best one was replaced: a run that is killed after hours
    # without a new best would lose them.

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the epoch, where Lightning does so rather than after the validation."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the validation."""
        if trainer.state.fn == "validate":
            self._signals.stop()
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
        if self._ending:
            self._end(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where training ended, be it between two validations; Lightning does so only if it never saved before."""
        received = self._signal_on_any_rank(trainer)  # in the last validation; no test is to follow
        self._signals.stop()
        self._save_last(trainer)
        if received:
            raise Interrupted(received, trainer.global_step)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch for signals; likewise below."""
        self._signals.start("test")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back; likewise below."""
        self._signals.stop()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._signals.start("predict")

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._signals.stop()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._signals.start("validate")

    def _save_last(self, trainer: pl.Trainer) -> None:
        """Save ``last.ckpt`` unless this step is saved already."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _signal_on_any_rank(self, trainer: pl.Trainer) -> int:
        """The signal any rank has received, 0 for none: ranks that end after different batches wait for each other."""
        if trainer.world_size == 1:
            return self._signals.received
        received = torch.tensor(self._signals.received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))  # type: ignore[arg-type]

    def _end(self, trainer: pl.Trainer) -> None:
        self._save_last(trainer)
        raise Interrupted(self._ending, trainer.global_step)
