"""The base class of a figure that shows what an experiment set out to show, with the numbers read off it."""

from __future__ import annotations

import io
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_alws.errors import UserError
from lightning_alws.files import atomic_write
from lightning_alws.noise import global_seed, seeded

FOLDER = "figures"
DOTS_PER_INCH = 100


class ExperimentFigure(Callback):
    """Draws a figure and logs its numbers after every validation and after the test.

    A subclass says what it draws: :meth:`draw`, and :meth:`measure` for numbers (logged as ``val/NAME`` and
    ``test/NAME``, the latter also in ``results.json``). Pictures go to ``figures/step_000100.png`` and
    ``figures/test.png`` in the run folder and to TensorBoard. Draws inside both are seeded by the run's seed.

    Attributes:
        model_class: the class of module it can look at; another one is a named error.
        prefix: how its files' names begin, so that several figures can be drawn in one run.
    """

    model_class: ClassVar[type[pl.LightningModule]] = pl.LightningModule
    prefix: ClassVar[str] = ""

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """Numbers of the model as it stands, by name; split is "val" (be quick) or "test" (be exact).

        Called on every rank with the same seed and without gradient; use ``torch.enable_grad()`` where one is needed.
        """
        return {}

    @abstractmethod
    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """The figure of the model as it stands (use ``matplotlib.figure.Figure``, not pyplot); on rank zero only."""

    def provenance(self) -> dict[str, Any]:
        """What a reader needs to know of the numbers, for ``results.json``; subclasses add counts and settings."""
        return {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a model it knows nothing of."""
        if not isinstance(pl_module, self.model_class):
            raise UserError(
                f"trainer.callbacks holds {type(self).__name__}, which is made for {self.model_class.__name__}, but "
                f"the model is {type(pl_module).__name__}; leave the callback out or change the model."
            )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the quick numbers."""
        if not trainer.sanity_checking and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._measure(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the exact numbers."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._measure(trainer, pl_module, "test")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._draw(trainer, pl_module, "val", f"step_{trainer.global_step:06d}.png")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        self._draw(trainer, pl_module, "test", "test.png")

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule, split: str) -> None:
        # Lightning tests in inference mode, whose tensors can never be differentiated.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            seeded(module.device, global_seed(), type(self).__name__, split),
        ):
            numbers = self.measure(module, trainer.datamodule, split)  # type: ignore[attr-defined]
        for name, value in numbers.items():
            module.log(f"{split}/{name}", float(value), sync_dist=True)

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule, split: str, file: str) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            seeded(module.device, global_seed(), type(self).__name__, "draw", split),
        ):
            figure = self.draw(module, trainer.datamodule, split)  # type: ignore[attr-defined]
        png = to_png(figure)
        with atomic_write(Path(trainer.default_root_dir) / FOLDER / f"{self.prefix}{file}") as target:
            target.write(png)
        if isinstance(trainer.logger, TensorBoardLogger):
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            trainer.logger.experiment.add_image(
                f"{type(self).__name__}/{split}", pixels, trainer.global_step, dataformats="HWC"
            )
            trainer.logger.experiment.flush()  # TensorBoard would show it only after two minutes


def to_png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight")
    return buffer.getvalue()
