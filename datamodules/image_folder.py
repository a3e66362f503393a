"""Images of one's own: any folder, tar or zip of image files, with sub-folders for classes and splits if there are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import torch
from torch import Tensor

from datamodules.image_files import ImageFiles, decode, find_source, inform, open_images, refusal, some_of, warn
from datamodules.images import ImageDataModule
from datamodules.loader import SPLITS
from datamodules.pixel_cache import Decoded, PixelCache
from datamodules.streaming import Rows
from lightning_alws.errors import UserError, check_at_least, printable
from lightning_alws.noise import generator

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LARGEST_SIZE = 1024
LONGEST_TITLE = 50  # letters of the source's name in that of the cache: file systems take 255 bytes in all
MOST_HELD_OUT = {"val": 5_000, "test": 10_000}  # where the sizes are not given: a tenth, but no more than this

Split = Literal["auto", "folders", "seed"]


class ImageFolder(ImageDataModule):
    """Images (n, channels, size, size) in [-1, 1] from a folder, tar or zip.

    Each image is turned upright as its EXIF data say, cut to its centre square and resized (bilinear, antialiased),
    once: the result lies in ``$ALWS_CACHE``. Files that cannot be read are left out, named in a warning and counted in
    ``results.json``.

    Files may lie in sub-folders ``train``, ``val`` and ``test`` (or training, valid, validation, testing); below
    these, or at once, in a sub-folder for each class. A split that has no sub-folder is set apart from the training
    images by the seed. There are labels where every file lies in the sub-folder of a class, and there are two or more;
    they follow the names of the training images' classes. A held-out split may lack some of these, which is logged.

    Args:
        path: the folder or archive; a relative one that is not there is looked for in $ALWS_DATA.
        size: height and width of the images; the decoders for images make 8, 16, 32, 64, ….
        channels: 3 for colour, 1 for grey.
        crop: height and width of the centre that is resized; by default the largest square.
        split: "folders" for splits by sub-folder, "seed" for seeded splits of all images whatever the folders are
            called, "auto" for folders where all images lie in a sub-folder of a split; where only some do, beside
            those for training and test or validation, they are refused.
        validation_size: images set apart for validation; by default a tenth, at most 5000.
        test_size: images set apart for test; by default a tenth, at most 10 000. Without effect on folders.
        device_megabytes: a split of more (2²⁰ bytes of pixels) is streamed from the cache, instead of being held on
            the device.
        batch_size: training images per step and process.
        eval_batch_size: validation, test or prediction images per step and process.
        seed: of the splits and the order.

    Raises:
        UserError: a setting makes no sense; in ``prepare_data`` and ``setup`` if there is no such folder, there are no
            or too few images, most of them cannot be read, an archive is damaged, a split has a class that is not in
            training, or the cache cannot be written.
    """

    likelihood = "gaussian"
    white = 255
    num_classes = 0

    def __init__(
        self,
        path: str | None = None,
        size: int = 32,
        channels: int = 3,
        crop: int | None = None,
        split: Split = "auto",
        validation_size: int | None = None,
        test_size: int | None = None,
        device_megabytes: int = 4096,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, validation_size or 0, seed)
        self.save_hyperparameters(logger=False)
        check_at_least("data", size=(size, 4), device_megabytes=(device_megabytes, 0))
        if size > LARGEST_SIZE:
            raise UserError(f"data.size is {size}; give at most {LARGEST_SIZE} pixels.")
        if channels not in (1, 3):
            raise UserError(f"data.channels is {channels}; give 3 for colour or 1 for grey.")
        if crop is not None:
            check_at_least("data", crop=(crop, 1))
        if test_size is not None:
            check_at_least("data", test_size=(test_size, 0))
        self.path, self.crop, self.split = path, crop, split
        self.held_out = {"val": validation_size, "test": test_size}
        self.device_megabytes = device_megabytes
        self.image_shape = (channels, size, size)
        self.classes: list[str] = []
        self._prepared: tuple[ImageFiles, Decoded] | None = None  # so that one process lists the files once
        grey = "-grey" if channels == 1 else ""
        self.name = f"{type(self).__name__}-{_title(path or 'none')}-{size}{grey}"

    def prepare_data(self) -> None:
        """Decode the images, if they are not yet in the cache."""
        self._prepared = self._decoded()

    def read_splits(self) -> Mapping[str, tuple[Rows, Tensor]]:
        """(pixels, labels) of "train", "val" and "test", from the cache; labels 0 where there are no classes."""
        files, decoded = self._prepared or self._decoded()
        self._prepared = None
        self.skipped_files, self.skipped_formats = decoded.skipped, files.other_formats
        folders = [_folders(name) for name in files.names]
        folders = _without_common(folders, self.split)
        parts = self._parts(files.names, folders)
        below = [names[1:] if part else names for part, names in zip(parts, folders, strict=True)]
        classes = [names[0] if names else None for names in below]
        self.classes = self._classes(parts, classes, decoded.files.tolist())
        self.num_classes = len(self.classes)
        number = {name: index for index, name in enumerate(self.classes)}
        labels = torch.tensor([number.get(name or "", 0) for name in classes])[decoded.files]
        numbers = torch.tensor([SPLITS.index(part or "train") for part in parts])[decoded.files]
        rows = {split: (numbers == index).nonzero().flatten() for index, split in enumerate(SPLITS)}
        seeded = {"val", "test"} - set(parts)
        self._hold_out(rows, seeded)
        self.in_file_order = frozenset(SPLITS) - seeded
        return self.chosen(decoded.pixels, labels, rows)

    def _parts(self, names: list[str], folders: list[list[str]]) -> list[str | None]:
        """The split that each file's folder is named after; None for all where the seed decides alone."""
        parts = [PARTS.get(below[0].lower()) if below else None for below in folders]
        if self.split == "folders" and None in parts:
            raise refusal(
                f"data.split is folders, but the images in {self.path} do not all lie in sub-folders named train, val "
                "or test; move them there, or give seed."
            )
        if self.split == "auto" and None in parts and {"train"} < set(parts) - {None}:
            beside = [name for name, part in zip(names, parts, strict=True) if part is None]
            raise refusal(
                f"data.path is {self.path}, where {len(beside)} images lie beside the sub-folders of train and test or "
                f"val: {some_of(beside)}; move or remove them, or give data.split seed to draw all splits at random."
            )
        if self.split == "seed" or None in parts or "train" not in parts:
            return [None] * len(folders)
        return parts

    def _classes(self, parts: list[str | None], classes: list[str | None], usable: list[int]) -> list[str]:
        """The classes of the training images, in the order of their names; none where there are no labels.

        Labels are numbers by name: a class that is in a held-out split alone would have one that training never saw.
        """
        found: dict[str, dict[str | None, int]] = {split: {} for split in SPLITS}
        for file in usable:
            count = found[parts[file] or "train"]
            count[classes[file]] = count.get(classes[file], 0) + 1
        named = {split: {name for name in count if name is not None} for split, count in found.items()}
        if any(None in count for count in found.values()):
            if any(named.values()):
                where = ", ".join(f"{count[None]} in {split}" for split, count in found.items() if None in count)
                warn(f"the images in {self.path} have no labels, since some lie in no sub-folder of a class ({where}).")
            return []
        for split in ("val", "test"):
            if strange := sorted(named[split] - named["train"]):
                raise refusal(
                    f"data.path is {self.path}, where {split} has the classes {some_of(strange)}, of which train "
                    "has no image; name the sub-folders of classes alike in every split, or remove those."
                )
            if found[split] and (lacking := named["train"] - named[split]):
                inform(
                    f"{split} has images of {len(named[split])} of the {len(named['train'])} classes in {self.path}, "
                    f"none of {some_of(sorted(lacking))}"
                )
        return sorted(named["train"]) if len(named["train"]) > 1 else []

    def _hold_out(self, rows: dict[str, Tensor], seeded: set[str]) -> None:
        """Move seeded parts of the training rows to the splits that have no folder."""
        count = len(rows["train"])
        for split in sorted(seeded):  # test first, so that it does not depend on the size of the other
            given = self.held_out[split]
            size = min(MOST_HELD_OUT[split], count // 10) if given is None else given
            order = torch.randperm(len(rows["train"]), generator=generator(self.seed, split))
            rows[split], rows["train"] = rows["train"][order[:size]], rows["train"][order[size:].sort()[0]]
        if len(rows["train"]) == 0:
            raise UserError(
                f"{self.name} has {count} images to train on, of which validation and test take all; lower "
                "data.validation_size and data.test_size, or add images."
            )

    def _decoded(self) -> tuple[ImageFiles, Decoded]:
        files = open_images(self._source(), "data.path")
        channels, size, _ = self.image_shape
        turn = partial(decode, channels=channels, size=size, crop=self.crop)
        return files, PixelCache(self.name, files, self.image_shape, {"crop": self.crop}, turn).open()

    def _source(self) -> Path:
        if self.path is None:
            raise UserError("data.path is not given; give the folder, tar or zip that holds the images.")
        return find_source(self.path, "data.path")


def _title(path: str) -> str:
    """The name of a folder or archive without its endings, fit for a message, a figure and a folder's name."""
    return printable(Path(os.path.abspath(Path(path).expanduser())).name.partition(".")[0])[:LONGEST_TITLE]


def _folders(name: str) -> list[str]:
    """The folders above a file, outermost first, without what leads nowhere or out of an archive."""
    return [part for part in PurePosixPath(name).parts[:-1] if part not in ("/", ".", "..")]


def _without_common(folders: list[list[str]], split: Split) -> list[list[str]]:
    """Without the outer folders that all files share: archives often hold everything in one."""
    while all(folders) and len({below[0] for below in folders}) == 1:
        if split == "folders" and folders[0][0].lower() in PARTS:
            break
        folders = [below[1:] for below in folders]
    return folders
