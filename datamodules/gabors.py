"""Images of Gabor functions that differ in orientation alone: data on a circle, made when asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datamodules.arrays import ArrayDataModule
from datamodules.loader import require_positive
from lightning_alws.errors import UserError
from lightning_alws.noise import generator


def gabor(
    orientation: Tensor, size: int = 16, envelope: float = 0.3, aspect: float = 0.8, wavelength: float = 1.0
) -> Tensor:
    """Gabor functions on the grid linspace(−1, 1, size)², shape (n, 1, size, size), in the dtype of ``orientation``.

        g(x, y) = exp(−(u² + aspect² v²) / (2 envelope²)) cos(2π u / wavelength)
        u = x cos θ + y sin θ,   v = −x sin θ + y cos θ

    A bright bar in the middle, between two dark ones. θ and θ + π give the same image.

    Args:
        orientation: θ in radians, (n,), of the direction across the bars; x grows with the column, y with the row.
        size: pixels a side.
        envelope: standard deviation along u, in units of half the image's side.
        aspect: ratio of the standard deviations along u and v.
        wavelength: of the cosine, in the same units.
    """
    grid = torch.linspace(-1, 1, size, dtype=orientation.dtype, device=orientation.device)
    cosine, sine = orientation.cos()[:, None, None], orientation.sin()[:, None, None]
    across = grid * cosine + grid[:, None] * sine
    along = -grid * sine + grid[:, None] * cosine
    images = torch.exp(-(across.square() + (aspect * along).square()) / (2 * envelope**2))
    return (images * torch.cos(2 * math.pi * across / wavelength))[:, None]


class Gabors(ArrayDataModule):
    """Gabor functions of uniformly distributed orientation, images (n, 1, 16, 16) in [−1, 1] without noise.

    θ ~ U(0, π); centre, phase, envelope (0.3), aspect ratio (0.8) and wavelength (1) are the same for all. The set of
    all images is a circle, on which θ goes round once in π. Source: kevin-w-li/al-ws, whose Gabor function is not
    published; the phase is read off its figures.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: validation, test or prediction images per step and process.
        train_size: training images.
        validation_size: validation images.
        test_size: test images.
        size: pixels a side.
        seed: of orientations and order.

    Raises UserError for a size below 1, or fewer than 4 pixels a side.
    """

    def __init__(
        self,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        train_size: int = 10_000,
        validation_size: int = 1_000,
        test_size: int = 1_000,
        size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.save_hyperparameters(logger=False)
        self.sizes_asked = {"train": train_size, "val": validation_size, "test": test_size}
        for name, value in (("train_size", train_size), ("validation_size", validation_size), ("test_size", test_size)):
            require_positive(name, value)
        if size < 4:
            raise UserError(f"size={size} leaves no room for a Gabor function; give 4 or more pixels a side.")
        self.size = size

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """(1, size, size)."""
        return (1, self.size, self.size)

    def orientations(self, split: str) -> Tensor:
        """θ of a split's images in [0, π), float64 (n,), on the CPU."""
        draws = torch.rand(
            self.sizes_asked[split], generator=generator(self.seed, "orientation", split), dtype=torch.float64
        )
        return math.pi * draws

    def gabor(self, orientation: Tensor) -> Tensor:
        """The images of given orientations (n,), shape (n, 1, size, size)."""
        return gabor(orientation, self.size)

    def read(self) -> dict[str, Tensor]:
        """The images of the three splits, float32."""
        return {split: self.gabor(self.orientations(split)).float() for split in self.sizes_asked}
