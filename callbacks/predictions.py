"""What ``alws predict`` writes: samples, and the amortised posterior expectation of given images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch import Tensor

from callbacks.sample_grid import picture, save_png
from datamodules.table import read_table
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.files import atomic_write
from lightning_alws.generative import Latents, LatentVariableModel, PlugIn, map_latents
from lightning_alws.metrics.pixels import to_unit
from lightning_alws.noise import global_seed, seeded
from lightning_alws.posterior import AmortisedPosterior

FOLDER = "predictions"


class Predictions(Callback):
    """Writes ``predictions/`` in the run folder, for the data module's prediction data or for a file of one's own:

    * ``samples.npz``: ``samples`` (n, *event), ``latents`` (n, ...) and, where the model has them, ``means`` E[x|z];
    * ``posterior.npz``: ``observations``, ``latent_means`` E[z|x], ``expectations`` E[f(z)|x] where a function f is
      given, ``reconstructions`` E[μ(z)|x] where the model has means, ``negative_mass`` Σ_n max(−W_n, 0) of the raw
      weights; latents of several parts have one array each, such as ``latent_means_lag``, and those of a mixture
      ``latent_means_component``, the probabilities p(k|x), and ``latent_means_value``;
    * for images also ``samples.png`` and ``posterior.png`` (images, their reconstructions).

    Args:
        num_samples: samples to write.
        num_observations: observations to write the posterior of, the first of the data.
        simplex: replace the weights of each observation by the nearest probability vector; raw weights otherwise.
        function: f, from latents (N, ...) to values (N, ...), as an import path such as ``my_module.energy``.
        observations: a ``.npy`` file (n, *event), or a ``.csv`` of one observation a line, whose posterior is wanted
            instead of that of the data's; in the units of the data module's batches (grey images in [−1, 1]).

    Raises:
        UserError: a count is below 1, or the file is missing or holds observations of another shape.
    """

    def __init__(
        self,
        num_samples: int = 64,
        num_observations: int = 64,
        simplex: bool = False,
        function: Callable | None = None,
        observations: str | None = None,
    ) -> None:
        check_at_least("predictions", num_samples=(num_samples, 1), num_observations=(num_observations, 1))
        self.num_samples = num_samples
        self.num_observations = num_observations
        self.simplex = simplex
        self.function = function
        self.observations = observations
        self._parts: list[dict[str, Tensor]] = []

    def too_large(self) -> str:
        """Where memory ran out, and what takes less; the end of a sentence."""
        return (
            f"in the predictions, with {self.num_samples} samples and {self.num_observations} observations; lower "
            "predictions.num_samples, predictions.num_observations, data.eval_batch_size or the model's sleep samples."
        )

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the samples."""
        self._parts = []
        if not trainer.is_global_zero:
            return
        with torch.no_grad(), seeded(pl_module.device, global_seed(), "predictions"):
            model: Any = pl_module.evaluation_model
            if isinstance(model, LatentVariableModel):
                z = model.sample_prior(self.num_samples)
                likelihood = model.likelihood(z)
                samples = {"samples": likelihood.sample(), "means": likelihood.mean}
            else:
                sleep = model.sleep(self.num_samples, direct=model.direct_only)
                z, samples = sleep.z, {"samples": sleep.x}
        self._write(trainer, "samples", samples | _by_name("latents", z), ["samples", "means"])

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """In the first batch, put the observations of the user's file in its place."""
        if self.observations is None or batch_idx > 0:
            return
        module: Any = pl_module
        given = read_table(Path(self.observations), "predictions.observations")
        shape = tuple(module.observe(batch).shape[1:])
        if tuple(given.shape[1:]) != shape:
            raise UserError(
                f"predictions.observations is {self.observations}, which holds rows of shape {tuple(given.shape[1:])}, "
                f"but the model's observations are of shape {shape}; save one of these in each row."
            )
        given = given[: self.num_observations].to(module.device)
        self._keep(module, module.amortised_posterior(given), given)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: AmortisedPosterior,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what the weights of this batch say of its observations."""
        learning: Any = pl_module
        if self.observations is None:
            self._keep(learning, outputs, learning.observe(batch))

    def _keep(self, module: Any, outputs: AmortisedPosterior, observations: Tensor) -> None:
        wanted = self.num_observations - sum(len(part["observations"]) for part in self._parts)
        if wanted <= 0:
            return
        posterior = outputs.projected() if self.simplex else outputs
        z, joint = outputs.sleep.z, outputs.sleep.joint
        statistics = module.evaluation_model.statistics(z)
        means = map_latents(statistics, lambda part: posterior.expectation(part.to(posterior.weights.dtype)))
        part = {"observations": observations, **_by_name("latent_means", means)}
        if self.function is not None:
            part["expectations"] = posterior.expectation(self._values(z))
        if isinstance(joint, PlugIn):
            part["reconstructions"] = posterior.expectation(joint.likelihood.mean)
        part["negative_mass"] = outputs.negative_mass
        self._parts.append({name: value[:wanted].cpu() for name, value in part.items()})

    def _values(self, z: Latents) -> Tensor:
        """f(z_n), checked: it is the user's."""
        function: Any = self.function
        values, count = function(z), len(next(iter(z.values())) if isinstance(z, dict) else z)
        if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != count:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UserError(
                f"predictions.function returns {shape} for {count} latents; it must return a tensor with one row for "
                "each of them."
            )
        return values.float() if not values.is_floating_point() else values

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the posterior expectations."""
        if not trainer.is_global_zero or not self._parts:
            return
        joined = {name: torch.cat([part[name] for part in self._parts]) for name in self._parts[0]}
        self._write(trainer, "posterior", joined, ["observations", "reconstructions"])
        pl.utilities.rank_zero_info(
            f"wrote {self._folder(trainer)}; mean negative mass of the raw weights "
            f"{float(joined['negative_mass'].mean()):.2f} ({'projected onto the simplex' if self.simplex else 'kept'})"
        )

    @staticmethod
    def _folder(trainer: pl.Trainer) -> Path:
        return Path(trainer.default_root_dir) / FOLDER

    def _write(self, trainer: pl.Trainer, name: str, arrays: dict[str, Tensor], shown: list[str]) -> None:
        with atomic_write(self._folder(trainer) / f"{name}.npz") as file:
            np.savez_compressed(file, **{key: value.cpu().numpy() for key, value in arrays.items()})  # type: ignore[arg-type]
        data = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "image_shape"):
            panels = [to_unit(arrays[key], data.likelihood).cpu() for key in shown if key in arrays]
            save_png(picture(panels, columns=8), self._folder(trainer) / f"{name}.png")


def _by_name(name: str, z: Latents) -> dict[str, Tensor]:
    """Latents as arrays of a file: one of the name, or one for each part."""
    return {f"{name}_{part}": value for part, value in z.items()} if isinstance(z, dict) else {name: z}
