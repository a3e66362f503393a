"""Whether a linear model has found the filters that its data were mixed by, beside FastICA on the same data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import FastICA
from torch import Tensor

from callbacks.figure import ExperimentFigure
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.metrics.recovery import Matching, amari_distance, match_columns
from lightning_alws.module import LatentVariableModule
from lightning_alws.noise import global_seed

FAST_ICA_ITERATIONS = 1000


class SourceRecovery(ExperimentFigure):
    """Logs how near the model's filters are to the true ones, and draws both in matched order.

    ``filter_cosine`` is the mean matched absolute cosine (1: perfect), ``amari_distance`` the Amari distance (0:
    perfect), ``noise_scale_ratio`` the learnt noise scale over the true one. The test has the first two also for
    FastICA, fitted to the same training data (``fastica_…``). For models with ``filters`` (D, K) and ``scale``, and
    data with the true ``mixing`` (D, K) and ``noise_scale``.

    Args:
        fastica_observations: how many of the training data FastICA is fitted to, at most.

    Raises:
        UserError: the model has no filters or the data have no true ones, or a number makes no sense.
    """

    model_class = LatentVariableModule

    def __init__(self, fastica_observations: int = 100_000) -> None:
        check_at_least("source_recovery", fastica_observations=(fastica_observations, 2))
        self.fastica_observations = fastica_observations
        self._fastica: Tensor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a model without filters, and data without the truth."""
        super().setup(trainer, pl_module, stage)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for what, part, attribute in (
            ("model", pl_module.generative, "filters"),
            ("data module", data, "mixing"),
        ):
            if not hasattr(part, attribute):
                raise UserError(
                    f"trainer.callbacks holds SourceRecovery, but the {what} ({type(part).__name__}) has no attribute "
                    f"'{attribute}'; leave the callback out, or use ICA on ICAMixtures."
                )

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """How near the learnt filters and noise scale are to the true ones, and FastICA's."""
        model = module.evaluation_model
        numbers = {
            "filter_cosine": match_columns(model.filters, data.mixing).mean_absolute_cosine,
            "amari_distance": amari_distance(model.filters, data.mixing),
            "noise_scale": model.scale.item(),
            "noise_scale_ratio": model.scale.item() / data.noise_scale if data.noise_scale else math.nan,
        }
        if split == "test":
            fastica = self.fastica(data)
            numbers["fastica_filter_cosine"] = match_columns(fastica, data.mixing).mean_absolute_cosine
            numbers["fastica_amari_distance"] = amari_distance(fastica, data.mixing)
        return numbers

    def fastica(self, data: Any) -> Tensor:
        """FastICA's filters of the training data, (D, K); fitted once."""
        if self._fastica is None:
            rows = data.observations("train")[: self.fastica_observations].flatten(1).cpu().double().numpy()
            ica = FastICA(
                data.mixing.shape[1],
                whiten="unit-variance",
                max_iter=FAST_ICA_ITERATIONS,
                random_state=global_seed() % 2**32,
            )
            self._fastica = torch.from_numpy(ica.fit(rows).mixing_)
        return self._fastica

    def provenance(self) -> dict[str, Any]:
        return {"source_recovery": {"fastica_observations": self.fastica_observations}}

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """True filters left, learnt ones in matched order and sign in the middle, their cosines right."""
        model, true = module.evaluation_model, data.mixing.cpu()
        matching = match_columns(model.filters, true)
        order = matching.cosines.abs().nan_to_num().argsort(descending=True)
        signs = matching.cosines.sign().nan_to_num(1.0).float()
        learnt = model.filters.detach().cpu().float()[:, matching.columns] * signs
        figure = Figure(figsize=(11, 3.9), layout="constrained")
        axes = figure.subplots(1, 3, width_ratios=[1, 1, 0.9])
        for panel, (title, filters) in zip(axes, (("true filters", true), ("learnt filters", learnt)), strict=False):
            panel.imshow(mosaic(filters[:, order]), cmap="gray", vmin=-1, vmax=1)
            panel.set_axis_off()
            panel.set_title(title)
        axes[1].set_title(f"learnt by {type(module).__name__}")
        self._draw_cosines(axes[2], matching, true, split, data)
        axes[2].set_title(f"noise scale {model.scale.item():.3f}, true {data.noise_scale:.3f}")
        return figure

    def _draw_cosines(self, panel: Any, matching: Matching, true: Tensor, split: str, data: Any) -> None:
        curves = [("learnt", matching)]
        if split == "test":
            curves.append(("FastICA", match_columns(self.fastica(data), true)))
        for name, curve in curves:
            values = curve.cosines.abs().sort(descending=True).values
            panel.plot(
                range(1, len(values) + 1), values, marker=".", label=f"{name}, mean {curve.mean_absolute_cosine:.3f}"
            )
        panel.set(xlabel="filter", ylabel="|cos| with the true filter", ylim=(0, 1.03))
        panel.legend(loc="lower left")


def mosaic(filters: Tensor) -> np.ndarray:
    """Filters (size², K), each over its largest absolute value, as one picture in [-1, 1] with lines between them.

    Filters that are no squares are drawn as columns of one pixel's width.
    """
    pixels, count = filters.shape
    side = math.isqrt(pixels)
    height, width = (side, side) if side * side == pixels else (pixels, 1)
    columns = math.ceil(math.sqrt(count)) if width > 1 else count
    rows = math.ceil(count / columns)
    picture = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1), dtype=np.float32)
    for index in range(count):
        tile = filters[:, index] / filters[:, index].abs().max().clamp_min(1e-12)
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        picture[top : top + height, left : left + width] = tile.reshape(height, width).nan_to_num().numpy()
    return picture
