"""Spectrum and contrasts of a scale mixture's samples beside the data's."""

from __future__ import annotations

from typing import Any, ClassVar

import pytorch_lightning as pl
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.figure import ExperimentFigure
from callbacks.image_data import random_images
from lightning_alws.errors import check_at_least
from lightning_alws.models.scale_mixture import ScaleMixtureModel

COLOURS = {"data": "black", "samples": "tab:orange"}


class Spectrum(ExperimentFigure):
    """``figures/spectrum_step_NNNNNN.png``: standard deviations of the components, and how contrasts vary, by bands.

    The contrast of an image in a band is half the log of its energy there. Where there are few components it varies by
    chance as well, in the data as in the samples.

    Logged: ``spectrum_error``, the root mean square difference of the log standard deviations of samples and data over
    components; ``contrast_error``, that of the standard deviations of the contrasts over bands; and
    ``contrast_spread_data`` and ``contrast_spread_samples``, these averaged over bands.

    Args:
        images: from which the numbers are taken, of each kind.

    Raises:
        UserError: the count is too small, or the model is no scale mixture.
    """

    model_class: ClassVar[type[pl.LightningModule]] = ScaleMixtureModel
    prefix = "spectrum_"

    def __init__(self, images: int = 2000) -> None:
        check_at_least("Spectrum", images=(images, 2))
        self.images = images

    def _kinds(self, module: Any, data: Any, split: str) -> dict[str, tuple[Tensor, Tensor]]:
        """Log standard deviations (components,) and the contrasts' (bands + 1,), of data and of samples."""
        model = module.evaluation_model
        kinds = {
            "data": random_images(data, split, self.images, 0, "spectrum", split),
            "samples": model.likelihood(model.sample_prior(self.images)).sample(),
        }
        results = {}
        for kind, images in kinds.items():
            if len(images) > 1:
                coordinates = (images - model.centre).flatten(1) @ model.directions
                contrast = 0.5 * model.energies(images).clamp_min(1e-12).log()
                results[kind] = coordinates.std(0).clamp_min(1e-12).log().cpu(), contrast.std(0).cpu()
        return results

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """The numbers the class names, of a split's images and as many samples."""
        kinds = self._kinds(module, data, split)
        numbers = {f"contrast_spread_{kind}": float(contrast.mean()) for kind, (_, contrast) in kinds.items()}
        if "data" in kinds:
            for name, ours, theirs in zip(
                ("spectrum_error", "contrast_error"), kinds["samples"], kinds["data"], strict=True
            ):
                numbers[name] = float((ours - theirs).square().mean().sqrt())
        return numbers

    def provenance(self) -> dict[str, Any]:
        return {"spectrum": {"images": self.images}}

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Both, samples beside data."""
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for kind, (deviation, contrast) in self._kinds(module, data, split).items():
            left.loglog(range(1, len(deviation) + 1), deviation.exp(), color=COLOURS[kind], lw=1.2, label=kind)
            right.plot(range(1, len(contrast) + 1), contrast, "o-", color=COLOURS[kind], ms=4, label=kind)
        left.set(xlabel="principal component", ylabel="standard deviation", title="spectrum")
        right.set(xlabel="band, last the rest", ylabel="spread of log contrast", title="contrasts", ylim=(0, None))
        left.legend()
        figure.suptitle(f"{split}, {self.images} images at most")
        return figure
