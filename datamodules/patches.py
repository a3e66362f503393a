"""Square grey patches from photographs: scikit-learn's two, a folder or tar of image files, or van Hateren's ``.iml``.

Preprocessing as in the published ICA experiment (kevin-w-li/al-ws): each patch less its mean and over its standard
deviation, each pixel then standardised over the patches.

van Hateren's files: 1024 × 1536 linear intensities, big-endian uint16, without a header. Source: van Hateren and van
der Schaaf, "Independent component filters of natural images compared with simple cells in primary visual cortex",
Proceedings of the Royal Society B 265, 1998.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_sample_images
from torch import Tensor

from datamodules.image_files import SUFFIXES as IMAGE_SUFFIXES
from datamodules.image_files import Unreadable, find_source, finite, in_mode, left_out, open_images, refusal

VAN_HATEREN = ".iml"
VAN_HATEREN_SHAPE = (1024, 1536)
SUFFIXES = (VAN_HATEREN, *IMAGE_SUFFIXES)
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green, blue: ITU-R BT.601
SAMPLE_SHAPE = (427, 640)  # height and width of scikit-learn's photographs
LEAST_CONTRAST = 0.01  # of intensities in [0, 1]: patches of sky are not blown up to full contrast


def check_default(source: str | None, argument: str, size: int) -> None:
    """Raise a UserError, before a model is made, for patches larger than the photographs that are the default.

    Args:
        source: as :class:`PatchSource` takes it.
        argument: the setting of the patches' size.
        size: height and width of a patch.
    """
    if source is None and size > min(SAMPLE_SHAPE):
        raise refusal(
            f"{argument} is {size}, but the photographs that come with scikit-learn have {SAMPLE_SHAPE[0]} x "
            f"{SAMPLE_SHAPE[1]} pixels; give at most {min(SAMPLE_SHAPE)}, or larger photographs by data.source."
        )


class PatchSource:
    """Photographs, and the patches that are cut from them; held one at a time, so that they may exceed the memory.

    Args:
        source: a folder (searched throughout), tar or zip of image files, or one image file; by default the two
            photographs that scikit-learn brings along.
        size: height and width of a patch in pixels.

    Attributes:
        names: the photographs that can be used.
        skipped: those that cannot be read or are smaller than a patch, each with the reason in brackets.
        other_formats: how many pictures of formats that are not read lie there too, by the ending of their names.

    Raises:
        UserError: there is no such file or folder, an archive is damaged, or there is no image.
    """

    def __init__(self, source: str | None, size: int) -> None:
        self.size = size
        self._photographs = _Photographs(source)
        self.other_formats = self._photographs.other_formats
        self.names: list[str] = []
        self.skipped: list[str] = []
        self._numbers: list[int] = []
        for number, name in enumerate(self._photographs.names):
            try:
                height, width = self._photographs.read(number).shape
                if min(height, width) < size:
                    raise Unreadable(f"{height} x {width} pixels, less than a patch of {size} x {size}")
            except Unreadable as error:
                self.skipped.append(left_out(name, error))
                continue
            self.names.append(name)
            self._numbers.append(number)

    def draw(self, wanted: Mapping[str, tuple[Sequence[int], int, torch.Generator]]) -> dict[str, Tensor]:
        """Patches at uniformly random places, equally many from each photograph, (count, size, size) in [0, 1].

        Args:
            wanted: by name, which of the photographs to draw from, how many patches, and the CPU generator that draws
                photographs, places and the order.
        """
        # Which photographs give one patch more than the others is drawn too.
        counts = {
            name: torch.tensor(list(among))[torch.randperm(len(among), generator=generator)]
            .repeat(-(-count // len(among)))[:count]
            .bincount(minlength=len(self.names))
            for name, (among, count, generator) in wanted.items()
        }
        patches = {name: torch.empty(count, self.size, self.size) for name, (_, count, _) in wanted.items()}
        filled = dict.fromkeys(wanted, 0)
        for index, number in enumerate(self._numbers):
            if not any(count[index] for count in counts.values()):
                continue
            pixels = torch.from_numpy(np.ascontiguousarray(self._photographs.read(number)))
            for name, (_, _, generator) in wanted.items():
                for _ in range(int(counts[name][index])):
                    top, left = (
                        int(torch.randint(side - self.size + 1, (), generator=generator)) for side in pixels.shape
                    )
                    patches[name][filled[name]] = pixels[top : top + self.size, left : left + self.size]
                    filled[name] += 1
        return {
            name: patches.pop(name)[torch.randperm(count, generator=generator)]
            for name, (_, count, generator) in wanted.items()
        }


class _Photographs:
    """Names and intensities of all photographs of a source, as :class:`PatchSource` takes it."""

    def __init__(self, source: str | None) -> None:
        self._source = source
        self.other_formats: dict[str, int] = {}
        if source is None:
            sample = load_sample_images()
            self._sample = sample.images
            self.names = [Path(name).name for name in sample.filenames]
        else:
            self._files = open_images(find_source(source, "data.source"), "data.source", SUFFIXES)
            self.names, self.other_formats = self._files.names, self._files.other_formats

    def read(self, number: int) -> np.ndarray:
        """Intensities (height, width), float32 in [0, 1]. Raises :class:`Unreadable`."""
        if self._source is None:
            return self._sample[number].astype(np.float32) @ LUMINANCE / 255
        return intensities(self.names[number], self._files.read(number))


def intensities(name: str, content: bytes) -> np.ndarray:
    """Intensities (height, width), float32 in [0, 1], of an image file; colours by their luminance.

    Images of more than 8 bits, van Hateren's among them, are divided by their largest intensity.

    Raises:
        Unreadable: Pillow cannot read it to its end, or a ``.iml`` file has not 1024 × 1536 × 2 bytes.
    """
    if name.lower().endswith(VAN_HATEREN):
        expected = 2 * VAN_HATEREN_SHAPE[0] * VAN_HATEREN_SHAPE[1]
        if len(content) != expected:
            raise Unreadable(f"{len(content)} bytes, not {expected}: 1024 x 1536 of two bytes")
        return _by_largest(np.frombuffer(content, dtype=">u2").reshape(VAN_HATEREN_SHAPE))
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode[0] in "IF":
                return _by_largest(np.asarray(image))
            return np.asarray(in_mode(image, "RGB"), dtype=np.float32) @ LUMINANCE / 255
    except Unreadable:
        raise
    except UnidentifiedImageError as error:  # whose message names an object in memory
        raise Unreadable("no image") from error
    except Exception as error:  # of any kind: Pillow's decoders raise what a broken file makes them stumble over
        raise Unreadable(str(error) or type(error).__name__) from error


def _by_largest(values: np.ndarray) -> np.ndarray:
    largest = float(finite(values).max())
    return values.astype(np.float32) / (largest if largest > 0 else 1.0)


def draw_patches(source: str | None, size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` patches from all photographs of a source, (count, size, size) in [0, 1], as :class:`PatchSource` draws.

    Raises:
        UserError: the photographs are missing, or one of them cannot be used.
    """
    photographs = PatchSource(source, size)
    if photographs.skipped:
        raise refusal(
            f"data.source is {source}, where {len(photographs.skipped)} images cannot be used, first "
            f"{photographs.skipped[0]}; repair or remove them, or change the patch size."
        )
    return photographs.draw({"all": (range(len(photographs.names)), count, generator)})["all"]


def without_mean(patches: Tensor) -> Tensor:
    """Patches (n, size, size) less their mean, over their standard deviation, or over 0.01 if that is less."""
    patches = patches - patches.mean((1, 2), keepdim=True)
    return patches.div_(patches.std((1, 2), correction=0, keepdim=True).clamp_min(LEAST_CONTRAST))


def pixel_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each pixel over patches (n, size, size); the latter above 0."""
    return patches.mean(0), patches.std(0, correction=0).clamp_min(torch.finfo(patches.dtype).tiny)


def standardise(patches: Tensor) -> Tensor:
    """Patches :func:`without_mean`, then each pixel standardised over all; their mean norm is about ``size``."""
    patches = without_mean(patches)
    mean, std = pixel_statistics(patches)
    return (patches - mean) / std
