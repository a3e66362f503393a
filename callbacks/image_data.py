"""What callbacks ask of a data module of images: how many there are, some of them, and whether they have labels.

Any data module with ``images(split)`` will do; one whose ``images`` takes ``rows`` makes floats of the chosen ones
alone, which matters where a split does not fit in memory.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor


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
