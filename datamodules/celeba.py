"""CelebA, aligned faces of celebrities, cut and resized once; the official split.

``list_eval_partition.txt`` holds a line ``000001.jpg 0`` for each image, 0 for training, 1 for validation, 2 for test.
Source: Z. Liu et al., "Deep learning face attributes in the wild", ICCV 2015
(https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html). The crop of 148 pixels is that of Larsen et al.
(arXiv:1512.09300) and of most since.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from datamodules.idx import ROOT_VARIABLE, default_root
from datamodules.image_files import ImageFiles, decode, left_out, open_images, some_of, warn
from datamodules.images import ImageDataModule
from datamodules.loader import SPLITS
from datamodules.pixel_cache import Decoded, PixelCache
from datamodules.streaming import Rows
from lightning_alws.errors import UserError, check_at_least

IMAGES = ("img_align_celeba", "img_align_celeba.zip")
PARTITION = ("list_eval_partition.txt", "list_eval_partition.csv")
SOURCE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


class CelebA(ImageDataModule):
    """Faces, images (n, 3, size, size) in [-1, 1]: 162 770 for training, 19 867 for validation, 19 962 for test.

    The centre of 148 x 148 of the aligned images of 178 x 218 pixels, resized (bilinear, antialiased). They are decoded
    once, into ``$ALWS_CACHE`` (2.5 GB at 64 x 64), with a progress bar; a decoding that was cut goes on where it was.
    There are no labels. Files must be fetched by hand: the publishers have them on a drive that asks for a browser.

    Args:
        size: height and width of the images, 64 or 32 in the literature.
        crop: height and width of the centre that is resized.
        root: folder that holds ``img_align_celeba`` (or ``img_align_celeba.zip``) and ``list_eval_partition.txt``,
            itself or in ``celeba``; by default $ALWS_DATA, else ``data``.
        device_megabytes: a split of more (2²⁰ bytes of pixels) is streamed from the cache, instead of being held on
            the device.
        batch_size: training images per step and process.
        eval_batch_size: validation, test or prediction images per step and process.
        seed: of the order.

    Raises:
        UserError: a setting makes no sense; in ``prepare_data`` and ``setup`` if images or partition are missing or
            broken, or the cache cannot be written.
    """

    likelihood = "gaussian"
    num_classes = 0
    white = 255

    def __init__(
        self,
        size: int = 64,
        crop: int = 148,
        root: str | None = None,
        device_megabytes: int = 4096,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, 0, seed)
        self.save_hyperparameters(logger=False)
        check_at_least("data", size=(size, 4), crop=(crop, 4), device_megabytes=(device_megabytes, 0))
        if size > crop:
            raise UserError(f"data.size is {size}, more than data.crop, {crop}; faces are not enlarged: lower it.")
        if crop > 178:
            raise UserError(f"data.crop is {crop}, but CelebA's images are 178 pixels wide; give at most that.")
        self.root, self.crop, self.device_megabytes = Path(root or default_root()).expanduser(), crop, device_megabytes
        self.image_shape = (3, size, size)
        self.name = f"CelebA-{size}" + ("" if crop == 148 else f"-{crop}")
        self._prepared: tuple[ImageFiles, Decoded, list[str | None]] | None = None  # so that files are listed once

    def prepare_data(self) -> None:
        """Decode the images, if they are not yet in the cache."""
        self._prepared = self._decoded()

    def read_splits(self) -> Mapping[str, tuple[Rows, Tensor]]:
        """(pixels, zeros) of the official "train", "val" and "test", from the cache."""
        files, decoded, parts = self._prepared or self._decoded()
        self._prepared = None
        strangers = [
            left_out(name, "not in the partition") for name, part in zip(files.names, parts, strict=True) if not part
        ]
        if strangers:
            warn(
                f"left out {len(strangers)} images of {self.name} that are not in {PARTITION[0]}: {some_of(strangers)}."
            )
        self.skipped_files, self.skipped_formats = decoded.skipped + strangers, files.other_formats
        numbers = torch.tensor([SPLITS.index(part) if part else -1 for part in parts])[decoded.files]
        rows = {split: (numbers == index).nonzero().flatten() for index, split in enumerate(SPLITS)}
        if len(rows["train"]) == 0:
            raise UserError(f"{self.name} has no training image: {PARTITION[0]} marks none of those there with 0.")
        return self.chosen(decoded.pixels, torch.zeros(len(decoded.pixels), dtype=torch.int64), rows)

    def _decoded(self) -> tuple[ImageFiles, Decoded, list[str | None]]:
        """The files, their pixels, and the split of each file."""
        images, partition = self._find(IMAGES), self._find(PARTITION)
        if images is None or partition is None:
            missing = " and ".join(
                names[0] for names, path in ((IMAGES, images), (PARTITION, partition)) if path is None
            )
            raise UserError(
                f"CelebA is not complete in root={self.root}: there is no {missing}, nor in its folder celeba. Set the "
                f"argument root, or {ROOT_VARIABLE} in the environment, to the folder that holds {IMAGES[0]} (or its "
                f".zip) and {PARTITION[0]}, both from {SOURCE}; images without a partition are read by ImageFolder."
            )
        splits = read_partition(partition)
        files = open_images(images, "data.root")
        parts = [splits.get(PurePosixPath(name).name) for name in files.names]
        absent = set(splits) - {PurePosixPath(name).name for name in files.names}
        if absent:
            warn(
                f"{len(absent)} of the {len(splits)} images in {partition} are not in {images}: "
                f"{some_of(sorted(absent))}."
            )
        turn = partial(decode, channels=3, size=self.image_shape[1], crop=self.crop)
        return files, PixelCache(self.name, files, self.image_shape, {"crop": self.crop}, turn).open(), parts

    def _find(self, names: tuple[str, ...]) -> Path | None:
        # os.path.exists, unlike Path.exists, takes a folder that may not be entered for an empty one
        places = [folder / name for folder in (self.root / "celeba", self.root) for name in names]
        return next((path for path in places if os.path.exists(path)), None)


def read_partition(path: Path) -> dict[str, str]:
    """The split of each image by its name, from ``name number`` lines, or ``name,number`` below a header.

    Raises:
        UserError: the file cannot be read, or a line is something else; it names the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it anew from {SOURCE}.") from error
    splits = {}
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if not words or (number == 1 and words == ["image_id", "partition"]):
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise UserError(
                f"line {number} of {path} is {line[:60]!r}, not a file's name and 0, 1 or 2; fetch it anew "
                f"from {SOURCE}."
            )
        splits[words[0]] = SPLITS[int(words[1])]
    if not splits:
        raise UserError(f"{path} is empty; fetch it anew from {SOURCE}.")
    return splits
