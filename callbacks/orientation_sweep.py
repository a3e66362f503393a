"""What a model with a latent on the circle has made of images of all orientations: does it go round, and evenly?"""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from callbacks.figure import ExperimentFigure
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.metrics.circular import kuiper_distance, nearest, winding_number
from lightning_alws.models.circle import CircleGenerator, CircleModel, on_circle

COLUMNS = 12  # images in a sweep
BINS = 36  # of 5° each


class OrientationSweep(ExperimentFigure):
    """Reads the orientation θ in [0, π) off the means of the model and compares it with the data's uniform one.

    θ of an image is that of the nearest of ``templates`` true Gabor functions. Logged, besides the exact held-out
    log-likelihood in nats an image:

    * ``winding_number`` of θ on its circle of length π (that of 2θ on one of 2π) over one turn of the latent: ±1 where
      every orientation is passed once;
    * ``orientation_kuiper`` between θ of ``draws`` random latents and the uniform law, and ``sweep_kuiper`` the same
      for equal steps of the latent, free of the draws' own scatter;
    * ``gabor_distance`` ‖μ(z) − nearest Gabor‖ / ‖Gabor‖, the mean over the draws.

    Args:
        draws: latents drawn from the prior.
        templates: true Gabor functions, at equal steps of orientation.

    Raises:
        UserError: a count makes no sense, or the data are not Gabor functions.
    """

    model_class = CircleModel

    def __init__(self, draws: int = 2000, templates: int = 720) -> None:
        check_at_least("orientation_sweep", draws=(draws, 1), templates=(templates, 3))
        self.draws, self.templates = draws, templates

    def provenance(self) -> dict[str, Any]:
        """Counts behind the numbers."""
        return {"orientation_sweep": {"draws": self.draws, "templates": self.templates}}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse data without a known orientation."""
        super().setup(trainer, pl_module, stage)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "gabor"):
            raise UserError(
                f"trainer.callbacks holds OrientationSweep, which compares images with true Gabor functions, but the "
                f"data are {type(data).__name__}; leave the callback out or use the data Gabors."
            )

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """The numbers described above."""
        model: CircleGenerator = module.evaluation_model
        drawn, distance = self._orientation(model, data, model.sample_prior(self.draws))
        swept, _ = self._orientation(model, data, model.turn(self.templates))
        x = data.observations(split).to(module.dtype)
        return {
            "exact_log_likelihood": float(model.log_marginal(x).mean()),
            "gabor_distance": float(distance.mean()),
            "orientation_kuiper": kuiper_distance(drawn, math.pi),
            "sweep_kuiper": kuiper_distance(swept, math.pi),
            "winding_number": winding_number(swept, math.pi),
        }

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Sweeps of model and data side by side, orientation against latent angle, histograms of orientations."""
        model: CircleGenerator = module.evaluation_model
        drawn, _ = self._orientation(model, data, model.sample_prior(self.draws))
        swept, _ = self._orientation(model, data, model.turn(self.templates))
        winding = winding_number(swept, math.pi)
        figure = Figure(figsize=(10, 6.4), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=(2, 3))
        self._images(figure.add_subfigure(grid[0]), model, data, swept, -1 if winding < 0 else 1)
        curve, histogram = figure.add_subfigure(grid[1]).subplots(1, 2)
        self._curve(curve, swept, winding)
        self._histogram(histogram, drawn, data.orientations(split))
        return figure

    def _orientation(self, model: CircleGenerator, data: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        """θ in [0, π) of the means at latents z (n, 2), and their distance to the nearest Gabor over its norm."""
        angle = math.pi * torch.arange(self.templates, dtype=torch.float64) / self.templates
        templates = data.gabor(angle).to(z.device)
        index, distance = nearest(model.likelihood(z).mean, templates)
        theta = angle.to(z.device)[index]
        # The mean of a model that has diverged is near nothing.
        theta = theta.masked_fill(~distance.isfinite(), math.nan)
        return theta, distance / templates.flatten(1).norm(dim=1)[index]

    @staticmethod
    def _images(figure: SubFigure, model: CircleGenerator, data: Any, swept: Tensor, direction: int) -> None:
        # The latent's origin and direction are arbitrary: begin where the orientation is nearest to 0, and go its way.
        gap = torch.minimum(swept, math.pi - swept)
        start = 2 * math.pi * int(gap.nan_to_num(math.inf).argmin()) / len(swept) - math.pi
        step = torch.arange(COLUMNS, dtype=torch.float64) / COLUMNS
        like = model.pixels.log_scale
        likelihood = model.likelihood(on_circle((start + direction * 2 * math.pi * step).to(like)))
        rows = {
            "data, orientation\nin equal steps": data.gabor(math.pi * step),
            "means, latent angle\nin equal steps": likelihood.mean,
            "samples": likelihood.sample(),
        }
        axes = figure.subplots(len(rows), COLUMNS)
        for row, (label, images) in zip(axes, rows.items(), strict=True):
            row[0].set_ylabel(label, rotation=0, ha="right", va="center")
            for axis, image in zip(row, images, strict=True):
                axis.imshow(image[0].cpu().float().numpy(), cmap="gray", vmin=-1, vmax=1)
                axis.set(xticks=[], yticks=[])
        for axis, angle in zip(axes[0], step, strict=True):
            axis.set_title(f"{180 * float(angle):.0f}°", fontsize=9)

    @staticmethod
    def _curve(axis: Axes, swept: Tensor, winding: int) -> None:
        latent = 360 * torch.arange(len(swept)) / len(swept) - 180
        axis.plot(latent.numpy(), swept.rad2deg().cpu().numpy(), ".", markersize=2, color="C0")
        axis.set(
            xlim=(-180, 180), ylim=(0, 180), xticks=range(-180, 181, 90), yticks=range(0, 181, 45),
            xlabel="latent angle a (°)", ylabel="orientation θ of the mean (°)",
            title=f"one turn of the latent: winding number of 2θ is {winding}",
        )  # fmt: skip

    @staticmethod
    def _histogram(axis: Axes, drawn: Tensor, data: Tensor) -> None:
        finite = drawn[drawn.isfinite()].rad2deg().cpu().numpy()
        axis.hist(finite, bins=BINS, range=(0, 180), color="C0", label="model")
        share = torch.full((len(data),), len(drawn) / len(data))
        axis.hist(
            data.rad2deg().numpy(), bins=BINS, range=(0, 180), weights=share.numpy(), histtype="step", color="C1",
            label="data",
        )  # fmt: skip
        axis.axhline(len(drawn) / BINS, color="black", linestyle="--", label="uniform")
        axis.set(
            xlim=(0, 180), xticks=range(0, 181, 45), xlabel="orientation θ (°)", ylabel=f"of {len(drawn)} draws",
            title=f"Kuiper distance to uniform {kuiper_distance(drawn, math.pi):.3f}",
        )  # fmt: skip
        axis.legend(loc="lower right")
