"""What callbacks ask of a data module and a model of images: how many there are, some of them, and their labels.

Any data module with ``images(split)`` will do; one whose ``images`` takes ``rows`` makes floats of the chosen ones
alone, which matters where a split does not fit in memory.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel
from lightning_alws.noise import generator


def count_images(data: Any, split: str) -> int:
    """How many images a split has."""
    sizes = getattr(data, "sizes", None)
    return int(sizes[split]) if sizes is not None else len(data.images(split))


def some_images(data: Any, split: str, rows: Tensor | int) -> Tensor:
    """Images (n, C, H, W) of a split by their numbers, or its first ones."""
    if "rows" in inspect.signature(data.images).parameters:
        return data.images(split, rows if isinstance(rows, Tensor) else slice(rows))
    images = data.images(split)
    return images[rows.to(images.device)] if isinstance(rows, Tensor) else images[:rows]


def has_labels(data: Any) -> bool:
    """Whether every image has a class."""
    return hasattr(data, "labels") and getattr(data, "num_classes", 1) > 0


def random_images(data: Any, split: str, count: int, *seed: int | str) -> Tensor:
    """At most ``count`` images of a split, chosen by the seed."""
    rows = torch.randperm(count_images(data, split), generator=generator(*seed))[:count]
    return some_images(data, split, rows)


def fair_rows(data: Any, split: str, count: int, *seed: int | str) -> Tensor | int:
    """Rows of at most ``count`` images that stand for the split, for :func:`some_images`.

    They are the first ones, unless the data say by ``in_file_order`` that the split follows its files' names, as that
    of a folder does, where the first images may be of one class: then rows chosen by the seed. The published sets come
    in an order that mixes the classes; their first images are what the literature's and our figures are of.
    """
    if split not in getattr(data, "in_file_order", ()):
        return count
    return torch.randperm(count_images(data, split), generator=generator(*seed))[:count]


def image_model(callback: object, module: Any, data: Any) -> LatentVariableModel:
    """The evaluated model, one of images like the data's; a UserError names the callback that it is no use for."""
    model = getattr(module, "evaluation_model", None)
    if not isinstance(model, LatentVariableModel) or not hasattr(data, "image_shape") or not hasattr(data, "images"):
        raise UserError(
            f"trainer.callbacks holds {type(callback).__name__}, which looks at images, but the model is "
            f"{type(module).__name__} and the data are {type(data).__name__}; leave it out, or choose others."
        )
    return model


def show(figure: Figure, picture: Tensor, title: str, place: tuple[int, int, int] = (1, 1, 1)) -> None:
    """A picture (3, height, width) in [0, 1] on axes of its own, without ticks."""
    axes = figure.add_subplot(*place)
    axes.imshow(picture.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()
