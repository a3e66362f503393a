"""A picture of real images and of each method's, side by side with names: samples above, means below."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from callbacks.sample_grid import ARRAYS, FOLDER, picture
from lightning_alws.comparison.groups import Method

LARGEST = 300_000  # bytes of the PNG file
GREYS = 32  # levels: enough to see, and a third of the bytes
PANELS = 6  # in one row
HEADING, GAP = 26, 14  # pixels
SIDES = (8, 6, 5, 4, 3, 2)  # images on a side of a panel, as many as the file's size allows


def read_images(folder: Path) -> dict[str, Tensor] | None:
    """``real``, ``samples`` and ``means`` of a run's test, (n, C, H, W) in [0, 1]; None where none can be read."""
    try:
        with np.load(folder / FOLDER / ARRAYS, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]).float() / 255 for name in ("real", "samples", "means")}
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        return None


def draw_samples(methods: Sequence[Method]) -> tuple[bytes | None, list[str]]:
    """The picture as the bytes of a PNG file (None without any images), and notes on what is not in it.

    Of each method the run with the least seed that has images is shown.
    """
    shown: list[tuple[str, dict[str, Tensor]]] = []
    notes = []
    for method in methods:
        found = next((images for record in method.records if (images := read_images(record.folder))), None)
        if found is None:
            notes.append(
                f"{method.label} is not in the picture: none of its runs has {FOLDER}/{ARRAYS}, which alws test makes"
            )
        else:
            shown.append((method.label, found))
    if not shown:
        return None, notes
    real = shown[0][1]["real"]
    for side in SIDES:
        png = _encode(_compose(real, shown, side))
        if len(png) <= LARGEST:
            return png, notes
    return png, notes


def _compose(real: Tensor, shown: Sequence[tuple[str, dict[str, Tensor]]], side: int) -> Image.Image:
    """Real images first, then the methods, in rows of at most six panels; each above its means."""
    panels = [("real", [_tiles(real, side)])]
    panels += [(label, [_tiles(images["samples"], side), _tiles(images["means"], side)]) for label, images in shown]
    sizes = [image.size for _, tiles in panels for image in tiles]
    width, height = (max(size[axis] for size in sizes) for axis in (0, 1))
    columns = min(PANELS, len(panels))
    rows = -(-len(panels) // columns)
    block = HEADING + 2 * height + GAP
    whole = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (block + GAP) - GAP), "white")
    pen = ImageDraw.Draw(whole)
    for index, (label, tiles) in enumerate(panels):
        left, top = GAP + (index % columns) * (width + GAP), GAP + (index // columns) * (block + GAP)
        _write(pen, label, left, top, width)
        for row, image in enumerate(tiles):
            whole.paste(image, (left, top + HEADING + row * (height + GAP // 2)))
    lower = GAP + 2 * HEADING + height
    for line, text in enumerate(("above: samples x ~ p(x|z)", "below: means E[x|z]")):
        _write(pen, text, GAP, lower + line * HEADING, width)
    return whole


def _tiles(images: Tensor, side: int) -> Image.Image:
    array = (picture([images[: side**2]], side) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def _write(pen: ImageDraw.ImageDraw, label: str, left: int, top: int, width: int) -> None:
    """The label in the middle above its panel, in a size that fits, and cut where none does."""
    for size in (16, 14, 12, 10):
        font = ImageFont.truetype(findfont("DejaVu Sans"), size)
        if pen.textlength(label, font) <= width:
            break
    while pen.textlength(label, font) > width and len(label) > 2:
        label = label[:-2] + "…"
    pen.text((left + (width - pen.textlength(label, font)) / 2, top), label, fill="black", font=font)


def _encode(image: Image.Image) -> bytes:
    """PNG; grey images with few levels of grey."""
    pixels = np.asarray(image)
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all():
        levels = np.round(pixels[..., 0] * ((GREYS - 1) / 255)) * (255 / (GREYS - 1))
        image = Image.fromarray(levels.round().astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
