"""Tiny data sets in MNIST's format, written afresh, and the real ones where they are at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from idx_files import write_idx_root

IdxRoot = Callable[..., Path]


@pytest.fixture
def idx_root(tmp_path: Path) -> IdxRoot:
    """Writes the four files of a data set with random pixels and returns the root folder."""

    def write(name: str = "MNIST", train: int = 60, test: int = 20, packed: bool = True) -> Path:
        return write_idx_root(tmp_path, name, train, test, packed)

    return write


@pytest.fixture
def real_root() -> Path:
    """The folder of the real files: $ALWS_DATA, else shared/data beside the repository."""
    root = Path(os.environ.get("ALWS_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no real MNIST in {root}")
    return root
