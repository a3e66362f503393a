"""Pictures of a run: real images beside samples and means of the model, as PNG files and in TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning import Callback
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import pad
from torchvision.utils import make_grid

from callbacks.image_data import random_images
from lightning_alws.errors import check_at_least
from lightning_alws.files import atomic_write
from lightning_alws.metrics.pixels import to_unit
from lightning_alws.noise import global_seed, seeded

FOLDER = "samples"
ARRAYS = "test.npz"  # in the same folder
LARGEST_ARRAYS = 2**20 - 4096  # bytes of its three arrays together
LEAST_TILE = 32  # pixels: an 8 × 8 digit is enlarged to be seen at all


def picture(panels: list[Tensor], columns: int) -> Tensor:
    """Panels of images (n, C, H, W) in [0, 1], tiled and set side by side on grey, shape (3, height, width).

    A panel with fewer images than the others ends in grey tiles.
    """
    scale = max(1, -(-LEAST_TILE // panels[0].shape[-1]))
    count = max(len(panel) for panel in panels)
    grids = []
    for panel in panels:
        tiles = panel.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
        tiles = pad(tiles, (0, 0, 0, 0, 0, 0, 0, count - len(panel)), value=0.5)
        grids.append(make_grid(tiles, nrow=columns, padding=1, pad_value=0.5))
    gap = torch.full((3, grids[0].shape[1], 16), 1.0)
    parts = [part for grid in grids for part in (grid.cpu(), gap)]
    return torch.cat(parts[:-1], dim=2)


def save_png(image: Tensor, path: Path) -> None:
    """Write a picture (3, height, width) in [0, 1], whole or not at all."""
    array = (image * 255).round().byte().permute(1, 2, 0).numpy()
    with atomic_write(path) as file:
        Image.fromarray(array).save(file, format="PNG", optimize=True)


def save_arrays(real: Tensor, samples: Tensor, means: Tensor, path: Path) -> None:
    """Write images (n, C, H, W) in [0, 1] as uint8 arrays of these names, whole or not at all.

    As many of each as make no megabyte together: 64 of 3 × 40 × 40, 28 of 3 × 64 × 64.
    """
    most = max(1, LARGEST_ARRAYS // (3 * math.prod(real.shape[1:])))
    arrays = [(images[:most] * 255).round().byte().cpu().numpy() for images in (real, samples, means)]
    with atomic_write(path) as file:
        np.savez_compressed(file, real=arrays[0], samples=arrays[1], means=arrays[2])


class SampleGrid(Callback):
    """After each validation: ``samples/step_NNNNNN.png`` with real images, samples and means, left to right.

    After the test the same as ``samples/test.png``, and as arrays in ``samples/test.npz`` for a comparison of runs.
    The same latents are used throughout, so that the pictures of a run can be compared, and the same real images in all
    runs on the same data: those that the data's seed picks from the split. Does nothing for models that make no images.

    Args:
        rows: and as many columns in each of the three panels.

    Raises:
        UserError: ``rows`` is below 1.
    """

    def __init__(self, rows: int = 8) -> None:
        check_at_least("sample_grid", rows=(rows, 1))
        self.rows = rows

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the panels."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._draw(trainer, pl_module, "val", f"step_{trainer.global_step:06d}.png")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the panels of the tested model."""
        self._draw(trainer, pl_module, "test", "test.png")

    @torch.no_grad()
    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str, name: str) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "image_shape") or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        model: Any = pl_module.evaluation_model
        with seeded(pl_module.device, global_seed(), "sample_grid"):
            likelihood = model.likelihood(model.sample_prior(self.rows**2))
            generated = [likelihood.sample(), likelihood.mean]
        # Not the first ones, which a folder in order of its classes would have all alike.
        real = random_images(data, split, self.rows**2, getattr(data, "seed", 0), "sample_grid", split)
        panels = [to_unit(images, data.likelihood).cpu() for images in (real, *generated)]
        image, folder = picture(panels, self.rows), Path(trainer.default_root_dir) / FOLDER
        save_png(image, folder / name)
        if split == "test":
            save_arrays(panels[0], panels[1], panels[2], folder / ARRAYS)
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_image(f"samples/{split}", image, trainer.global_step)
            trainer.logger.experiment.flush()  # TensorBoard would show it only after two minutes
