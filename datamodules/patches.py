"""Square grey patches from photographs: scikit-learn's two, a folder or tar of image files, or van Hateren's ``.iml``.

Preprocessing as in the published ICA experiment (kevin-w-li/al-ws): each patch less its mean and over its standard
deviation, each pixel then standardised over the patches.

van Hateren's files: 1024 × 1536 linear intensities, big-endian uint16, without a header. Source: van Hateren and van
der Schaaf, "Independent component filters of natural images compared with simple cells in primary visual cortex",
Proceedings of the Royal Society B 265, 1998.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.files import read_bytes

VAN_HATEREN = ".iml"
VAN_HATEREN_SHAPE = (1024, 1536)
SUFFIXES = (VAN_HATEREN, ".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green, blue: ITU-R BT.601
LEAST_CONTRAST = 0.01  # of intensities in [0, 1]: patches of sky are not blown up to full contrast


def photographs(source: str | None) -> Iterator[tuple[str, np.ndarray]]:
    """Name and intensities (height, width), float32 in [0, 1], of one photograph after the other.

    Args:
        source: a folder (searched throughout) or tar of image files, or one image file; by default the two photographs
            that scikit-learn brings along.

    Raises:
        UserError: there is no such file or folder, it holds no images, or one of them cannot be read.
    """
    if source is None:
        sample = load_sample_images()
        for name, pixels in zip(sample.filenames, sample.images, strict=True):
            yield Path(name).name, pixels.astype(np.float32) @ LUMINANCE / 255
        return
    found = False
    for name, content in _files(Path(source)):
        found = True
        yield name, decode(name, content)
    if not found:
        raise UserError(
            f"data.source is {source}, but it holds no images; give a folder or tar of files that end in "
            f"{', '.join(SUFFIXES)}."
        )


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the image files, in the order of their names (in that of the tar)."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield str(path), read_bytes(path, "an image of data.source")
    elif not source.is_file():
        raise UserError(f"data.source is {source}, but there is no such file or folder; check the path.")
    elif source.suffix.lower() in SUFFIXES:
        yield str(source), read_bytes(source, "data.source")
    else:
        try:
            with tarfile.open(source) as archive:
                for member in archive:
                    file = archive.extractfile(member) if Path(member.name).suffix.lower() in SUFFIXES else None
                    if file is not None:
                        yield f"{source}/{member.name}", file.read()
        except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise UserError(
                f"data.source is {source}, which is no readable tar and no image file ({error}); give a folder or tar "
                "of images."
            ) from error


def decode(name: str, content: bytes) -> np.ndarray:
    """Intensities (height, width), float32 in [0, 1], of an image file; colours by their luminance.

    Images of more than 8 bits, van Hateren's among them, are divided by their largest intensity.

    Raises:
        UserError: the file cannot be read, or a ``.iml`` file has not 1024 × 1536 × 2 bytes.
    """
    if name.lower().endswith(VAN_HATEREN):
        expected = 2 * VAN_HATEREN_SHAPE[0] * VAN_HATEREN_SHAPE[1]
        if len(content) != expected:
            raise UserError(
                f"the van Hateren image {name} has {len(content)} bytes, not {expected} (1024 x 1536 of two bytes); "
                "download it anew or remove it."
            )
        return _by_largest(np.frombuffer(content, dtype=">u2").reshape(VAN_HATEREN_SHAPE))
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode[0] in "IF":
                return _by_largest(np.asarray(image))
            return np.asarray(image.convert("RGB"), dtype=np.float32) @ LUMINANCE / 255
    except (OSError, ValueError, Image.DecompressionBombError, SyntaxError) as error:
        raise UserError(f"the image {name} cannot be read ({error}); repair or remove it.") from error


def _by_largest(intensities: np.ndarray) -> np.ndarray:
    largest = float(intensities.max())
    return intensities.astype(np.float32) / (largest if largest > 0 else 1.0)


def draw_patches(source: str | None, size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` patches at uniformly random places, equally many from each photograph, (count, size, size) in [0, 1].

    The photographs are gone through twice and held one at a time, so that a folder may be larger than memory.

    Args:
        source: as :func:`photographs` takes it.
        size: height and width of a patch in pixels.
        count: how many patches.
        generator: a CPU generator that draws photographs and places.

    Raises:
        UserError: the photographs are missing or broken, or one is smaller than a patch.
    """
    total = 0
    for name, pixels in photographs(source):
        total += 1
        if min(pixels.shape) < size:
            raise UserError(
                f"the image {name} has {pixels.shape[0]} x {pixels.shape[1]} pixels, less than a patch of {size} x "
                f"{size}; remove it or lower the patch size."
            )
    # Which photographs give one patch more than the others is drawn too.
    chosen = torch.randperm(total, generator=generator).repeat(-(-count // total))[:count]
    patches = []
    for index, (_, pixels) in enumerate(photographs(source)):
        height, width = pixels.shape
        for _ in range(int((chosen == index).sum())):
            top = int(torch.randint(height - size + 1, (), generator=generator))
            left = int(torch.randint(width - size + 1, (), generator=generator))
            patches.append(torch.from_numpy(pixels[top : top + size, left : left + size].copy()))
    order = torch.randperm(count, generator=generator)
    return torch.stack(patches)[order]


def standardise(patches: Tensor) -> Tensor:
    """Patches (n, size, size) without their mean, over their standard deviation, then each pixel standardised over all.

    The deviation of a patch counts as at least 0.01 of full intensity. The mean norm is then about ``size``.
    """
    patches = patches - patches.mean((1, 2), keepdim=True)
    patches = patches / patches.std((1, 2), correction=0, keepdim=True).clamp_min(LEAST_CONTRAST)
    return (patches - patches.mean(0)) / patches.std(0, correction=0).clamp_min(torch.finfo(patches.dtype).tiny)
