"""Tiny data sets in MNIST's format, written afresh, and the real ones where they are at hand."""

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

IdxRoot = Callable[..., Path]


def idx_bytes(values: np.ndarray) -> bytes:
    """The values as an IDX file, written from the format's definition and not with the code under test."""
    header = struct.pack(f">{1 + values.ndim}i", 2048 + values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def idx_root(tmp_path: Path) -> IdxRoot:
    """Writes the four files of a data set with random pixels and returns the root folder."""

    def write(name: str = "MNIST", train: int = 60, test: int = 20, packed: bool = True) -> Path:
        folder = tmp_path / name / "raw"
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
        return tmp_path

    return write


@pytest.fixture
def real_root() -> Path:
    """The folder of the real files: $ALWS_DATA, else shared/data beside the repository."""
    root = Path(os.environ.get("ALWS_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no real MNIST in {root}")
    return root
