"""What ``alws predict`` writes: samples, and the amortised posterior expectation of given images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch import Tensor

from callbacks.sample_grid import picture, save_png, to_unit
from lightning_alws.errors import check_at_least
from lightning_alws.files import atomic_write
from lightning_alws.generative import PlugIn
from lightning_alws.noise import global_seed, seeded
from lightning_alws.posterior import AmortisedPosterior

FOLDER = "predictions"


class Predictions(Callback):
    """Writes ``predictions/`` in the run folder, for the data module's prediction images; nothing for other data.

    * ``samples.png``, ``samples.npz`` (``samples``, ``means`` (n, C, H, W); ``latents`` (n, D));
    * ``posterior.png`` (images, their reconstructions), ``posterior.npz``: ``images``, ``latent_means`` E[z|x],
      ``reconstructions`` E[μ(z)|x], ``negative_mass`` Σ_n max(−W_n, 0) of the raw weights.

    Args:
        num_samples: samples to write.
        num_images: images to reconstruct, the first of the data.
        simplex: replace the weights of each image by the nearest probability vector; raw weights otherwise.

    Raises:
        UserError: a count is below 1.
    """

    def __init__(self, num_samples: int = 64, num_images: int = 64, simplex: bool = False) -> None:
        check_at_least("predictions", num_samples=(num_samples, 1), num_images=(num_images, 1))
        self.num_samples = num_samples
        self.num_images = num_images
        self.simplex = simplex
        self._parts: list[dict[str, Tensor]] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the samples."""
        self._parts = []
        if not trainer.is_global_zero or not self._applies(trainer):
            return
        with torch.no_grad(), seeded(pl_module.device, global_seed(), "predictions"):
            model: Any = pl_module.evaluation_model
            z = model.sample_prior(self.num_samples)
            likelihood = model.likelihood(z)
            samples = {"samples": likelihood.sample(), "means": likelihood.mean, "latents": z}
        self._write(trainer, "samples", samples, ["samples", "means"])

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: AmortisedPosterior,
        batch: Tensor,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what the weights of this batch say of its images."""
        wanted = self.num_images - sum(len(part["images"]) for part in self._parts)
        if wanted <= 0 or not isinstance(outputs.sleep.joint, PlugIn) or not self._applies(trainer):
            return
        posterior = outputs.projected() if self.simplex else outputs
        part = {
            "images": batch,
            "latent_means": posterior.expectation(outputs.sleep.z),
            "reconstructions": posterior.expectation(outputs.sleep.joint.likelihood.mean),
            "negative_mass": outputs.negative_mass,
        }
        self._parts.append({name: value[:wanted].cpu() for name, value in part.items()})

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the posterior expectations."""
        if not trainer.is_global_zero or not self._parts:
            return
        joined = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        self._write(trainer, "posterior", joined, ["images", "reconstructions"])
        pl.utilities.rank_zero_info(
            f"wrote {self._folder(trainer)}; mean negative mass of the raw weights "
            f"{float(joined['negative_mass'].mean()):.2f} ({'projected onto the simplex' if self.simplex else 'kept'})"
        )

    @staticmethod
    def _applies(trainer: pl.Trainer) -> bool:
        return hasattr(trainer.datamodule, "image_shape")  # type: ignore[attr-defined]

    @staticmethod
    def _folder(trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / FOLDER

    def _write(self, trainer: pl.Trainer, name: str, arrays: dict[str, Tensor], shown: list[str]) -> None:
        with atomic_write(self._folder(trainer) / f"{name}.npz") as file:
            np.savez_compressed(file, **{key: value.cpu().numpy() for key, value in arrays.items()})  # type: ignore[arg-type]
        likelihood = trainer.datamodule.likelihood  # type: ignore[attr-defined]
        panels = [to_unit(arrays[key], likelihood).cpu() for key in shown]
        save_png(picture(panels, columns=8), self._folder(trainer) / f"{name}.png")
