"""Patches of natural images, a set without classes: photographs held out for test give no patch to training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datamodules.image_files import refusal, some_of, warn
from datamodules.images import ImageDataModule
from datamodules.loader import SPLITS, Convert, unchanged
from datamodules.patches import PatchSource, check_default, pixel_statistics, without_mean
from datamodules.streaming import Rows
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.memory import installed
from lightning_alws.noise import generator

LEAST_PATCHES = 2  # a standard deviation takes two
LEAST_DEVIATION = 1e-6  # of a pixel over the training patches: to be divided by


class NaturalPatches(ImageDataModule):
    """Grey patches (n, 1, size, size), real numbers without bounds: about unit variance at every pixel.

    Each patch is less its mean and over its standard deviation (at least 0.01 of full intensity, so that flat patches
    stay flat), then each pixel is standardised by its mean and deviation over the training patches, as in the published
    experiments (kevin-w-li/al-ws). Places are drawn uniformly by the seed, equally many from each photograph.

    Photographs, not patches, are split by the seed: those of the test give no patch to training or validation, and
    those of the validation none to training. Of two photographs alone one is for the test, and the other for both of
    the rest. Photographs that cannot be read or are smaller than a patch are left out, named in a warning and counted
    in ``results.json``.

    Args:
        source: photographs: a folder, tar or zip of image files, or of van Hateren's ``.iml``; a relative one that is
            not there is looked for in $ALWS_DATA; by default the two that scikit-learn brings along.
        size: height and width of a patch in pixels.
        train_size: training patches; in memory, each takes 4 · size² bytes, and twice that while they are made.
        validation_size: validation patches.
        test_size: test patches.
        test_fraction: of the photographs that are for the test, and as many for validation; at least one of each.
        batch_size: training patches per step and process.
        eval_batch_size: validation, test or prediction patches per step and process.
        seed: of the split, the places and the order.

    Attributes:
        photographs: the photographs of each split by name, once the data are read.

    Raises:
        UserError: a number makes no sense, or the patches do not fit in memory; in ``setup`` if there are fewer than
            two photographs that can be used, or no readable source.
    """

    likelihood = "gaussian_unbounded"
    pixel_range = None
    num_classes = 0
    white = 1

    def __init__(
        self,
        source: str | None = None,
        size: int = 32,
        train_size: int = 100_000,
        validation_size: int = 5_000,
        test_size: int = 10_000,
        test_fraction: float = 0.1,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, validation_size, seed)
        self.save_hyperparameters(logger=False)
        check_at_least("data", size=(size, 2), train_size=(train_size, LEAST_PATCHES), test_size=(test_size, 0))
        if not 0 < test_fraction < 0.5:
            raise UserError(f"data.test_fraction is {test_fraction}; give more than 0 and less than 0.5.")
        check_default(source, "data.size", size)
        bytes_needed = 2 * 4 * (train_size + validation_size + test_size) * size**2  # twice: while they are made
        there = installed(torch.device("cpu"))
        if there is not None and bytes_needed > there:
            raise UserError(
                f"data.train_size is {train_size}, which with patches of {size} x {size} takes "
                f"{bytes_needed / 2**30:.3g} GiB of memory, more than the {there / 2**30:.3g} GiB of this "
                "machine; lower it, or data.size."
            )
        self.source, self.test_fraction = source, test_fraction
        self.split_sizes = {"train": train_size, "val": validation_size, "test": test_size}
        self.image_shape = (1, size, size)
        self.photographs: dict[str, list[str]] = {}
        self.name = f"NaturalPatches-{size}"

    def read_splits(self) -> Mapping[str, tuple[Rows, Tensor]]:
        """(patches, zeros) of "train", "val" and "test", float32 (n, 1, size, size)."""
        size = self.image_shape[1]
        source = PatchSource(self.source, size)
        self.skipped_files, self.skipped_formats = source.skipped, source.other_formats
        if source.skipped:
            warn(f"left out {len(source.skipped)} photographs, which cannot be used: {some_of(source.skipped)}.")
        usable = len(source.names)
        if usable < 2:
            first = f", first {source.skipped[0]}" if source.skipped else ""
            raise refusal(
                f"data.source is {self.source}, where {usable} photographs can be used ({len(source.skipped)} cannot"
                f"{first}); give two or more, so that those of the test give none to training."
            )
        parts = self._parts(usable)
        self.photographs = {split: [source.names[index] for index in part] for split, part in parts.items()}
        drawn = source.draw(
            {split: (parts[split], self.split_sizes[split], generator(self.seed, "patches", split)) for split in SPLITS}
        )
        # No more is held at a time than twice all patches: they may be many, or large.
        patches = {split: without_mean(drawn.pop(split)) for split in SPLITS}
        mean, std = pixel_statistics(patches["train"])
        if float(std.min()) < LEAST_DEVIATION:
            raise refusal(
                f"data.source is {self.source}, where every training patch has the same number at some pixel, as blank "
                "photographs do; give others."
            )
        return {
            split: (rows.sub_(mean).div_(std).unsqueeze(1), torch.zeros(len(rows), dtype=torch.int64))
            for split, rows in patches.items()
        }

    def _parts(self, count: int) -> dict[str, list[int]]:
        """Which photographs each split's patches come from."""
        order = torch.randperm(count, generator=generator(self.seed, "photographs")).tolist()
        held_out = max(1, round(self.test_fraction * count))
        test, rest = order[:held_out], order[held_out:]
        val, train = (rest[:held_out], rest[held_out:]) if len(rest) > held_out else (rest, rest)
        return {"train": sorted(train), "val": sorted(val), "test": sorted(test)}

    def converter(self, split: str) -> Convert:
        """Patches are floats already."""
        return unchanged
