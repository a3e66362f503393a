"""What the components of a mixture prior over images stand for: their samples, and their places in the latent plane."""

from __future__ import annotations

from typing import Any, cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.clusters import COLOURS
from callbacks.figure import ExperimentFigure
from callbacks.image_data import fair_rows, some_images
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.metrics.pixels import to_unit
from lightning_alws.models.image import ImageGenerator, ImageModel
from lightning_alws.priors import GaussianMixturePrior

TINT = 0.55  # how much of a tile's colour is its component's
MARGIN = 2.5  # standard deviations around the components that the map covers


class ComponentMap(ExperimentFigure):
    """Samples of each component, and the latent plane coloured by component, for an ImageModel with a mixture prior.

    Left, a row of means E[x|v] of draws v|k for each component by falling weight; right, E[x|v] on a grid of the first
    two latents (the others at 0), each tile in the colour of argmax_k p(k|v). Logs under ``val/`` and ``test/``:
    ``components``, those of weight above ``survival``; ``effective_components``, exp of the weights' entropy; and where
    the data have labels, ``component_purity``: the share of images that have the majority's label among the images of
    their component, argmax_k p(k|x) with p(k|x) = E[1(k)|x] from the regression's weights (one component for all would
    get the share of the most frequent label).

    Args:
        columns: samples of each component.
        tiles: of the map, along each axis.
        survival: weight above which a component counts as surviving.
        images: at most so many are used for the purity, chosen as :func:`~callbacks.image_data.fair_rows` does.

    Raises:
        UserError: a number makes no sense, or the model's prior is no mixture of at least two dimensions.
    """

    model_class = ImageModel

    def __init__(self, columns: int = 12, tiles: int = 20, survival: float = 0.02, images: int = 2000) -> None:
        check_at_least(
            "ComponentMap", columns=(columns, 1), tiles=(tiles, 2), survival=(survival, 0), images=(images, 1)
        )
        self.columns, self.tiles, self.survival, self.images = columns, tiles, survival, images

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a model without a mixture to show."""
        super().setup(trainer, pl_module, stage)
        prior = pl_module.generative.prior
        if not isinstance(prior, GaussianMixturePrior) or prior.dim < 2:
            raise UserError(
                f"trainer.callbacks holds ComponentMap, but model.prior is {type(prior).__name__} over "
                f"{pl_module.generative.latent_dim} numbers; use GaussianMixturePrior over 2 or more, or leave the "
                "callback out."
            )

    def provenance(self) -> dict[str, Any]:
        """What surviving means, and how many images the purity is of."""
        return {"component_map": {"survival_weight": self.survival, "images": self.images}}

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """How many components are in use, and whether they know of the labels."""
        prior = _prior(module)
        weights = prior.probabilities
        numbers = {
            "components": float((weights > self.survival).sum()),
            "effective_components": float(torch.special.entr(weights).sum().exp()),
        }
        if hasattr(data, "labels"):
            rows = fair_rows(data, split, self.images, "component_map", split)
            images = some_images(data, split, rows).to(module.dtype)
            labels = data.labels(split)
            labels = labels[rows.to(labels.device)] if isinstance(rows, Tensor) else labels[:rows]
            posterior = module.amortised_posterior(images)
            assigned = posterior.expectation(prior.statistics(posterior.sleep.z)["component"]).argmax(1)
            numbers["component_purity"] = purity(assigned, labels)
        return numbers

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Samples of each component, and the map."""
        model = cast(ImageGenerator, module.evaluation_model)
        prior = _prior(module)
        weights = prior.probabilities.cpu()
        order = weights.argsort(descending=True)
        figure = Figure(figsize=(13, 6.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        self._draw_samples(left, model, order, weights, data.likelihood)
        self._draw_map(right, model, order, data.likelihood)
        return figure

    def _draw_samples(self, axes: Axes, model: ImageGenerator, order: Tensor, weights: Tensor, likelihood: str) -> None:
        rows = []
        for place, k in enumerate(order.tolist()):
            z = cast(GaussianMixturePrior, model.prior).sample_component(k, self.columns)
            means = to_unit(model.likelihood(z).mean, likelihood).cpu()
            rows.append(tinted(means, torch.full((self.columns,), place)))
        axes.imshow(tile(torch.cat(rows), self.columns).numpy(), interpolation="nearest")
        height = rows[0].shape[-2]
        axes.set_yticks(
            [height * (row + 0.5) for row in range(len(order))], [f"{weights[k]:.2f}" for k in order.tolist()]
        )
        axes.set_xticks([])
        axes.set(ylabel="component's weight", title="means of draws from each component")

    def _draw_map(self, axes: Axes, model: ImageGenerator, order: Tensor, likelihood: str) -> None:
        prior = cast(GaussianMixturePrior, model.prior)
        low, high = extent(prior, self.survival)
        steps = (torch.arange(self.tiles, device=low.device, dtype=low.dtype) + 0.5) / self.tiles
        across, up = low[0] + (high[0] - low[0]) * steps, low[1] + (high[1] - low[1]) * steps.flip(0)
        # Row by row from the top, as images are tiled.
        values = torch.zeros(self.tiles**2, prior.dim, device=low.device, dtype=low.dtype)
        values[:, 0], values[:, 1] = across.repeat(self.tiles), up.repeat_interleave(self.tiles)
        log_joint = prior.log_joint(values)
        z = prior.pack(log_joint.argmax(1), values)
        means = to_unit(model.likelihood(z).mean, likelihood).cpu()
        place = order.argsort()[log_joint.argmax(1).cpu()]
        picture = tile(tinted(means, place), self.tiles).numpy()
        box = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
        axes.imshow(picture, extent=box, aspect="auto", interpolation="nearest")
        axes.set(xlabel="first latent", ylabel="second latent", title="decoded means, by most probable component")


def _prior(module: Any) -> GaussianMixturePrior:
    return cast(GaussianMixturePrior, module.evaluation_model.prior)


def purity(assigned: Tensor, labels: Tensor) -> float:
    """Share of rows that have the most frequent label of their group, for groups and labels (n,), int64."""
    counts = torch.zeros(int(assigned.max()) + 1, int(labels.max()) + 1, device=labels.device)
    counts.index_put_((assigned.to(labels.device), labels), torch.ones_like(labels, dtype=counts.dtype), True)
    return float(counts.max(1).values.sum() / len(labels))


def extent(prior: GaussianMixturePrior, survival: float) -> tuple[Tensor, Tensor]:
    """Lower and upper corner, (2,) each, of a box around the first two dimensions of all surviving components."""
    weights = prior.probabilities.detach()
    alive = weights >= min(survival, float(weights.max()))
    means = prior.means[alive, :2]
    spread = MARGIN * prior.covariances.diagonal(dim1=1, dim2=2)[alive, :2].sqrt()
    return (means - spread).amin(0), (means + spread).amax(0)


def tinted(images: Tensor, place: Tensor) -> Tensor:
    """Images (n, C, H, W) in [0, 1] in their components' colours, (n, 3, H, W): bright where the image is dark."""
    palette = torch.tensor([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in COLOURS])
    background = 1 - TINT + TINT * palette[place % len(palette)]
    return background[:, :, None, None] * (1 - images.mean(1, keepdim=True))


def tile(images: Tensor, columns: int) -> Tensor:
    """Images (n, C, H, W) row by row, (rows · H, columns · W, C)."""
    rows, (channels, height, width) = len(images) // columns, images.shape[1:]
    grid = images.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return grid.reshape(rows * height, columns * width, channels)
