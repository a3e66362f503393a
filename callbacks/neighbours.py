"""The training images nearest to a model's images: whether it makes images, or repeats some."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.figure import ExperimentFigure
from callbacks.image_data import count_images, image_model, random_images, show, some_images
from callbacks.sample_grid import picture
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.kernels import squared_distances
from lightning_alws.metrics.pixels import to_unit

CHUNK = 2_000  # training images at a time
LEAST_QUANTILE = 0.01


def nearest(queries: Tensor, data: Any, neighbours: int) -> tuple[Tensor, Tensor]:
    """Root mean squared differences to the nearest training images, and their numbers, each (N, neighbours).

    Args:
        queries: images (N, C, H, W).
        data: the data module; its training images are gone through in parts.
        neighbours: how many, nearest first.
    """
    count, flat = count_images(data, "train"), queries.flatten(1).float()
    best = torch.full((len(flat), 0), torch.inf, device=flat.device)
    rows = torch.zeros((len(flat), 0), dtype=torch.int64, device=flat.device)
    for chunk in torch.arange(count).split(CHUNK):
        squared = squared_distances(flat, some_images(data, "train", chunk).flatten(1).float().to(flat.device))
        numbers = chunk.to(flat.device).expand(len(flat), -1)
        best, order = torch.cat([best, squared], 1).topk(min(neighbours, best.shape[1] + len(chunk)), 1, largest=False)
        rows = torch.cat([rows, numbers], 1).gather(1, order)
    return (best / flat.shape[1]).sqrt(), rows


class NearestNeighbours(ExperimentFigure):
    """``figures/neighbours_step_NNNNNN.png``: means E[x|z] with their nearest training images; and three distances.

    Logged, as the root mean squared difference of pixels to the nearest training image, medians over images:
    ``neighbour_distance_samples``, ``neighbour_distance_means``, and ``neighbour_distance_held_out`` of real images of
    the split. Smooth images are near to everything, so that a small distance alone does not tell a copy; the ratio of
    the distances to the nearest and to the second nearest training image does, being near 0 for a copy.
    ``neighbour_copies`` is the fraction of means whose ratio is below that of 99 in 100 held-out images: 0.01 where the
    model repeats no more than chance does.

    Args:
        images: from which the numbers are taken, of each kind.
        shown: means in the picture.
        neighbours: training images shown beside each.

    Raises:
        UserError: a count is too small.
    """

    prefix = "neighbours_"

    def __init__(self, images: int = 500, shown: int = 8, neighbours: int = 5) -> None:
        check_at_least("NearestNeighbours", images=(images, 2), shown=(shown, 1), neighbours=(neighbours, 1))
        self.images, self.shown, self.neighbours = images, shown, neighbours

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """Distances to the nearest training images, nothing for an empty split; UserError for one training image."""
        model = image_model(self, module, data)
        if count_images(data, "train") < 2:
            raise UserError("trainer.callbacks holds NearestNeighbours, which takes two training images or more.")
        real = random_images(data, split, self.images, 0, "neighbours", split)
        if not len(real):
            return {}
        likelihood = model.likelihood(model.sample_prior(self.images))
        kinds = {"samples": likelihood.sample(), "means": likelihood.mean, "held_out": real}
        distances = {kind: nearest(images, data, 2)[0] for kind, images in kinds.items()}
        numbers = {f"neighbour_distance_{kind}": float(pair[:, 0].median()) for kind, pair in distances.items()}
        ratio = {kind: pair[:, 0] / pair[:, 1].clamp_min(1e-12) for kind, pair in distances.items()}
        limit = ratio["held_out"].quantile(LEAST_QUANTILE)
        return {**numbers, "neighbour_copies": float((ratio["means"] < limit).float().mean())}

    def provenance(self) -> dict[str, Any]:
        return {"nearest_neighbours": {"images": self.images, "distance": "root mean square over pixels"}}

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Sampled means, and images of the split, each beside its nearest training images."""
        model = image_model(self, module, data)
        means = model.likelihood(model.sample_prior(self.shown)).mean
        real = random_images(data, split, self.shown, 0, "neighbours", split)
        figure = Figure(figsize=(2 * self.neighbours + 4, self.shown + 0.4))
        for place, (title, images) in enumerate({"E[x|z]": means, f"{split} images": real}.items(), 1):
            _, rows = nearest(images, data, self.neighbours)
            near = some_images(data, "train", rows.flatten().cpu()).to(images.device)
            near = near.view(len(images), -1, *images.shape[1:])
            tiles = torch.cat([images[:, None], near.to(images.dtype)], dim=1).flatten(0, 1)
            grid = picture([to_unit(tiles, data.likelihood).cpu()], 1 + near.shape[1])
            show(figure, grid, f"{title} (left column) and nearest training images", (1, 2, place))
        return figure
