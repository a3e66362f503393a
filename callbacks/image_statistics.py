"""Histograms of pixels and filter responses of a model's images beside the data's: what a natural image is known by."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.figure import ExperimentFigure
from callbacks.image_data import image_model, random_images
from lightning_alws.errors import check_at_least
from lightning_alws.metrics.filters import kurtosis, responses

BINS = 101
SPAN = 6.0  # standard deviations of the data's responses to either side
COLOURS = {"data": "black", "samples": "tab:orange", "means": "tab:blue"}


class ImageStatistics(ExperimentFigure):
    """``figures/statistics_step_NNNNNN.png``: log densities of pixels and filter responses; and their kurtosis.

    Logged for every filter of :func:`~lightning_alws.metrics.filters.responses`: ``kurtosis_FILTER_data``,
    ``kurtosis_FILTER_samples`` (draws of x, noise included) and ``kurtosis_FILTER_means`` (E[x|z]).

    Args:
        images: from which the numbers are taken, of each kind.

    Raises:
        UserError: the count is too small.
    """

    prefix = "statistics_"

    def __init__(self, images: int = 1000) -> None:
        check_at_least("ImageStatistics", images=(images, 2))
        self.images = images

    def _responses(self, module: Any, data: Any, split: str) -> dict[str, dict[str, Tensor]]:
        model = image_model(self, module, data)
        likelihood = model.likelihood(model.sample_prior(self.images))
        kinds = {
            "data": random_images(data, split, self.images, 0, "statistics", split),
            "samples": likelihood.sample(),
            "means": likelihood.mean,
        }
        return {kind: responses(images) for kind, images in kinds.items() if len(images)}

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        return {
            f"kurtosis_{name}_{kind}": kurtosis(values)
            for kind, filters in self._responses(module, data, split).items()
            for name, values in filters.items()
        }

    def provenance(self) -> dict[str, Any]:
        return {"image_statistics": {"images": self.images}}

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """The pixels' and the filter responses' histograms, samples beside data."""
        kinds = self._responses(module, data, split)
        names = list(next(iter(kinds.values())))
        reference = kinds.get("data") or kinds["samples"]
        figure = Figure(figsize=(3.2 * len(names), 3.2), layout="constrained")
        for place, name in enumerate(names, 1):
            axes = figure.add_subplot(1, len(names), place)
            limit = SPAN * max(float(reference[name].std()), 1e-6)
            for kind, filters in kinds.items():
                values = filters[name].cpu()
                counts = torch.histc(values, BINS, -limit, limit) / (len(values) * 2 * limit / BINS)
                centres = (torch.arange(BINS) + 0.5) * (2 * limit / BINS) - limit
                label = f"{kind} ({kurtosis(values):.1f})"
                axes.semilogy(centres[counts > 0], counts[counts > 0], color=COLOURS[kind], lw=1.2, label=label)
            axes.set_title(name)
            axes.legend(title="kurtosis", fontsize=7, title_fontsize=7, loc="lower center")
        figure.suptitle(f"densities of pixels and filter responses ({split})")
        return figure
