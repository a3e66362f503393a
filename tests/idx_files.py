"""Tiny data sets in MNIST's format, written from the format's definition and not with the code under test."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(values: np.ndarray) -> bytes:
    """The values as an IDX file."""
    header = struct.pack(f">{1 + values.ndim}i", 2048 + values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx_root(root: Path, name: str = "MNIST", train: int = 60, test: int = 20, packed: bool = True) -> Path:
    """The four files of a data set with random pixels under ``root``, which is returned."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (n, 28, 28))
        images[:, :8] = 0  # as in the real ones, much is black ...
        images[:, 8:16] = 255  # ... and some fully white
        for kind, values in (("images-idx3", images), ("labels-idx1", rng.integers(0, 10, n))):
            content = idx_bytes(values)
            path = folder / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return root
