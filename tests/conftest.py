"""Settings that every test shares."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

# The process that only hands out the tests (pytest -n) reads this file too and needs no torch, which takes seconds to
# import before the first worker is started: imported here is only what all need.


def pytest_configure() -> None:
    """Test processes beside each other (pytest -n) have together no more threads than one alone would have."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // int(workers)))


def pytest_collection_finish() -> None:
    """What the imports have made is there to the end: no collection of garbage need visit it, here or in a fork."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter clear away at its end what it would otherwise call leaked."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache of feature extractors; all share one of their own."""
    monkeypatch.setenv("ALWS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def tiny_root(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder with tiny MNIST and Fashion-MNIST files, and as many counts as there are of blowflies."""
    from idx_files import write_idx_root

    from datamodules import blowfly

    root, counts = tmp_path_factory.mktemp("root"), [100 + 40 * (row % 19) for row in range(180)]
    (root / "blowfly.csv").write_text("count\n" + "\n".join(map(str, counts)))
    monkeypatch.setattr(blowfly, "CHECKSUM", blowfly.checksum(counts))
    for name in ("MNIST", "FashionMNIST"):
        write_idx_root(root, name)
    return root


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws whatever ran before; tests that need other draws seed themselves."""
    import torch

    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(0)
