"""Images of any data set's space as grey values or colours, for the eye and for networks made for pictures."""

from __future__ import annotations

from torch import Tensor

SHOWN_DEVIATIONS = 3.0  # pixels without bounds, standardised over the data, are shown from −3 (black) to 3 (white)


def to_unit(images: Tensor, likelihood: str) -> Tensor:
    """Images of the data's space as grey values or colours in [0, 1]; what lies outside is clamped.

    Args:
        images: of any shape.
        likelihood: of the data: "bernoulli", "gaussian" or "gaussian_unbounded".
    """
    images = images.float()
    if likelihood == "gaussian_unbounded":
        images = images / SHOWN_DEVIATIONS
    return (images if likelihood == "bernoulli" else (images + 1) / 2).clamp(0, 1)


def to_levels(images: Tensor, likelihood: str) -> Tensor:
    """:func:`to_unit` on the 256 levels 0, 1, …, 255, rounded and never wrapped; floats, so that NaN remains."""
    return (to_unit(images, likelihood) * 255).round()


def as_colour(images: Tensor) -> Tensor:
    """Images (N, C, H, W) with three channels: grey ones repeated."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
