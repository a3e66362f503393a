"""Small image files for the tests, as pixels, encoded, in folders and in archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(number: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """Smooth seeded pixels uint8 (height, width, channels), or (height, width) for one channel."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (2, 2, channels), dtype=np.uint8)
    image = np.repeat(np.repeat(coarse, -(-height // 2), 0), -(-width // 2), 1)[:height, :width]
    return image[..., 0] if channels == 1 else image


def encoded(array: np.ndarray, form: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    """An image file's content."""
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, form, **options)
    return file.getvalue()


def write_files(source: Path, files: dict[str, bytes]) -> Path:
    """A folder, or by its ending a .tar, .tar.gz or .zip, with the files."""
    if source.suffix == ".zip":
        with zipfile.ZipFile(source, "w") as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
    elif ".tar" in source.suffixes:
        with tarfile.open(source, "w:gz" if source.suffix == ".gz" else "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        for name, content in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return source
