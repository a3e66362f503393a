"""Images on the way from one latent to another: whether a decoder has learnt a space or some images in it."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.figure import ExperimentFigure
from callbacks.image_data import image_model, show
from callbacks.sample_grid import picture
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.metrics.pixels import to_unit
from lightning_alws.priors import StandardNormal


def great_circles(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """z from ``start`` to ``end``, both (N, D), in equal turns of direction, lengths changing in equal ratios.

    On a straight way between two draws of N(0, I) in many dimensions the middle is shorter than almost any draw.

    Returns (N, steps, D), both ends included.
    """
    lengths = start.norm(dim=1, keepdim=True), end.norm(dim=1, keepdim=True)
    first, last = (z / length.clamp_min(1e-12) for z, length in zip((start, end), lengths, strict=True))
    angle = (first * last).sum(1).clamp(-1, 1).acos()[:, None, None].clamp_min(1e-4)
    t = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)[:, None]
    turned = ((1 - t) * angle).sin() * first[:, None] + (t * angle).sin() * last[:, None]
    turned = turned / turned.norm(dim=2, keepdim=True).clamp_min(1e-12)
    shorter, longer = (length.clamp_min(1e-12).log()[:, None] for length in lengths)
    return turned * ((1 - t) * shorter + t * longer).exp()


class LatentInterpolations(ExperimentFigure):
    """``figures/interpolations_step_NNNNNN.png``: E[x|z] on ways between two draws of the prior, one a row.

    Along great circles where the prior is N(0, I), straight otherwise. The draws are the same throughout a run.

    Args:
        rows: how many ways.
        steps: images on each, both ends included.

    Raises:
        UserError: a count is too small; in a run, if the latents are not vectors of real numbers.
    """

    prefix = "interpolations_"

    def __init__(self, rows: int = 8, steps: int = 9) -> None:
        check_at_least("LatentInterpolations", rows=(rows, 1), steps=(steps, 2))
        self.rows, self.steps = rows, steps

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """A row of means for each pair of latents, from one to the other."""
        model = image_model(self, module, data)
        ends = model.sample_prior(2 * self.rows)
        if ends.ndim != 2 or not model.latents_are_real:
            raise UserError(
                f"trainer.callbacks holds LatentInterpolations, but the latents of {type(module).__name__} are no "
                "vectors of real numbers; leave it out."
            )
        start, end = ends.chunk(2)
        if isinstance(getattr(model, "prior", None), StandardNormal):
            way = great_circles(start, end, self.steps)
        else:
            way = torch.lerp(
                start[:, None], end[:, None], torch.linspace(0, 1, self.steps, device=start.device)[:, None]
            )
        means = model.likelihood(way.flatten(0, 1)).mean
        grid = picture([to_unit(means, data.likelihood).cpu()], self.steps)
        figure = Figure(figsize=(self.steps, self.rows + 0.4))
        show(figure, grid, "E[x|z] between draws of the prior")
        return figure
