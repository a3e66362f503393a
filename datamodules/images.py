"""Images kept as one uint8 tensor on the device, or streamed to it: the base class of the image data sets."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datamodules.loader import Convert, DeviceDataModule
from datamodules.streaming import Rows, placed
from lightning_alws.errors import UserError
from lightning_alws.noise import generator, mix_seed


def scale(pixels: Tensor, white: int) -> Tensor:
    """uint8 pixels 0..``white`` as floats in [-1, 1]; black is exactly -1 and white exactly 1."""
    return pixels.float().div_(white).mul_(2).sub_(1)


def binarise(pixels: Tensor, white: int, seed: int) -> Tensor:
    """x = 1[u < pixel / ``white``], float 0 or 1, with uniform u drawn on the pixels' device from the seed."""
    u = torch.rand(pixels.shape, generator=torch.Generator(pixels.device).manual_seed(seed), device=pixels.device)
    return (u < pixels.float().div_(white)).float()


class ImageDataModule(DeviceDataModule):
    """Training, validation and test images (C, H, W), with labels where there are classes.

    A data set sets the attributes below, before any data is read, and implements :meth:`read_images`, or
    :meth:`read_splits` where validation images are not drawn from the training set. All images are float32 in the space
    of the likelihood: {0, 1} for "bernoulli", [-1, 1] for "gaussian" unless ``pixel_range`` says otherwise. Only
    training images may change.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: validation, test or prediction images per step and process.
        validation_size: images that a seeded permutation of the training set sets apart.
        seed: of the splits, the order and the binarisation.

    Raises UserError for a batch size below 1 or a negative ``validation_size``.
    """

    image_shape: tuple[int, int, int]  # (C, H, W), padding included
    likelihood: str  # "bernoulli", "gaussian", or "gaussian_unbounded" where pixel_range is None
    num_classes: int  # labels are 0..num_classes - 1; 0 where images have none; known at the latest with the data
    white: int  # the pixel value of full intensity
    redraws: bool = False  # whether training images are binarised anew at each step
    pixel_range: tuple[float, float] | None = (-1.0, 1.0)  # of Gaussian images; None for numbers without bounds
    device_megabytes: int = 4096  # a split of more (2²⁰ bytes) stays in memory-mapped files and is streamed
    in_file_order: frozenset[str] = frozenset()  # splits that follow their files' names: often sorted by class or time
    skipped_files: list[str]  # what could not be used, each with the reason; known with the data
    skipped_formats: dict[str, int]  # pictures of formats that are not read, how many by the ending of their names

    def __init__(self, batch_size: int, eval_batch_size: int, validation_size: int, seed: int) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        if validation_size < 0:
            raise UserError(f"validation_size={validation_size} is negative; set it to 0 or more images.")
        self.validation_size = validation_size
        self.skipped_files, self.skipped_formats = [], {}
        self._labels: dict[str, Tensor] = {}

    def read_images(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(pixels, labels) of the training and of the test set: uint8 (n, C, H, W) of 0..white, int64 (n,)."""
        raise NotImplementedError

    def read_splits(self) -> Mapping[str, tuple[Rows, Tensor]]:
        """(pixels, labels) of "train", "val" and "test"; validation images are a seeded part of the training set.

        Raises UserError if ``validation_size`` is not below the number of images, or files are missing or broken.
        """
        (pixels, labels), test = self.read_images()
        n, k = len(pixels), self.validation_size
        if k >= n:
            raise UserError(f"validation_size={k} takes all {n} training images of {self.name}; set it below {n}.")
        order = torch.randperm(n, generator=generator(self.seed, "validation"))
        return {**self.chosen(pixels, labels, {"val": order[:k], "train": order[k:]}), "test": test}

    def chosen(self, pixels: Tensor, labels: Tensor, rows: Mapping[str, Tensor]) -> dict[str, tuple[Rows, Tensor]]:
        """The rows of each split of stored images: copied, or streamed if they exceed ``device_megabytes``."""
        return {split: (placed(pixels, index, self.device_megabytes), labels[index]) for split, index in rows.items()}

    def read(self) -> dict[str, Rows]:
        """The pixels of the three splits. Raises UserError as :meth:`read_splits`."""
        splits = self.read_splits()
        self._labels = {split: labels for split, (_, labels) in splits.items()}
        return {
            split: self._fixed_draw(pixels[:], split).to(torch.uint8)
            if self.likelihood == "bernoulli" and not self._redrawn(split)
            else pixels
            for split, (pixels, _) in splits.items()
        }

    def _redrawn(self, split: str) -> bool:
        return self.redraws and split == "train"

    def _fixed_draw(self, pixels: Tensor, split: str) -> Tensor:
        """One binarisation of a whole split, drawn on the CPU so that it is the same on every machine."""
        return binarise(pixels.cpu(), self.white, mix_seed(self.seed, "binarise", split))

    def converter(self, split: str) -> Convert:
        """What makes float images of stored pixels and a seed."""
        if self.likelihood == "gaussian":
            return lambda pixels, seed: scale(pixels, self.white)
        if self._redrawn(split):
            return lambda pixels, seed: binarise(pixels, self.white, seed)
        return lambda pixels, seed: pixels.float()

    def images(self, split: str, rows: Tensor | slice = slice(None)) -> Tensor:
        """A split, or the chosen rows of it, float32 (n, C, H, W); where redrawn, one fixed draw.

        Ask for the rows that are needed alone: a split that is streamed may not fit in memory as floats. ValueError for
        an unknown split.
        """
        pixels = self.rows(split)
        rows = rows.to(pixels.device) if isinstance(rows, Tensor) else rows
        if self._redrawn(split):
            return self._fixed_draw(pixels[:], split)[rows.cpu() if isinstance(rows, Tensor) else rows].to(
                pixels.device
            )
        return self.converter(split)(pixels[rows], 0)

    def labels(self, split: str) -> Tensor:
        """Class of each of :meth:`images`, int64 (n,). ValueError for an unknown split, UserError without classes."""
        device = self.rows(split).device
        if self.num_classes == 0:
            raise UserError(f"the images of {self.name} have no labels; use what needs none.")
        return self._labels[split].to(device)
