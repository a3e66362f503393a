"""Every data module that reads a user's file, and every way in which that file can be none: one sentence each.

Files of MNIST and its relatives have a table of their own, in test_idx.py.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import MNIST, Blowfly, ICAMixtures, LinearDynamicsData, Sinusoid, Table, VoltageTrace
from lightning_alws.errors import UserError


def table(path: Path) -> Any:
    return Table(str(path), validation_size=2, test_size=2)


# What reads a file, and the text of a good one.
CSV: dict[str, tuple[Callable[[Path], Any], str]] = {
    "Table": (table, "a,b\n" + "1,2\n3,4\n" * 6),
    "Blowfly": (lambda path: Blowfly(str(path)), "count\n" + "".join(f"{t % 7 + 1}\n" for t in range(60))),
    "VoltageTrace": (
        lambda path: VoltageTrace(str(path)),
        "time,voltage,current\n" + "".join(f"{0.05 * t:.6g},{-70 + t % 7},10\n" for t in range(100)),
    ),
    "LinearDynamicsData": (
        lambda path: LinearDynamicsData(path=str(path), columns=["a"], validation_size=1, test_size=1),
        "a\n" + "".join(f"{t % 5}\n" for t in range(90)),
    ),
    "Sinusoid": (
        lambda path: Sinusoid(path=str(path), columns=["a"]),
        "a\n" + "".join(f"{t % 5}\n" for t in range(90)),
    ),
}


def read(reader: Callable[[Path], Any], path: Path) -> Any:
    """A data module that has read its file."""
    data = reader(path)
    data.prepare_data()
    data.setup("fit")
    return data


def refused(reader: Callable[[Path], Any], path: Path) -> str:
    with pytest.raises(UserError) as error:
        read(reader, path)
    sentence = str(error.value)
    assert path.name in sentence
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("name", CSV)
def test_a_byte_order_mark_changes_nothing(tmp_path: Path, name: str) -> None:
    """Spreadsheets write one."""
    reader, text = CSV[name]
    (tmp_path / "plain.csv").write_text(text)
    (tmp_path / "marked.csv").write_text(text, encoding="utf-8-sig")
    plain, marked = (read(reader, tmp_path / f"{kind}.csv") for kind in ("plain", "marked"))
    assert plain.sizes == marked.sizes
    assert (plain.rows("train") == marked.rows("train")).all()


def test_a_byte_order_mark_costs_no_row_without_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n" * 9, encoding="utf-8-sig")
    assert sum(read(table, tmp_path / "a.csv").sizes.values()) == 9


BROKEN: dict[str, tuple[Callable[[str], bytes], str]] = {
    "empty": (lambda text: b"", "is empty|has no rows of numbers"),
    "blank": (lambda text: b"\n \n\n", "is empty|has no rows of numbers"),
    "names alone": (lambda text: text.splitlines()[0].encode(), "no rows of numbers"),
    "cut within a row": (lambda text: (text + "\nx").encode(), "finite number|no number"),
    "a NaN": (lambda text: (text + ",".join(["nan"] * (1 + text.splitlines()[0].count(","))) + "\n").encode(),
              "finite number|has a NaN"),
    "text": (lambda text: (text + "many,many,many\n").encode(), "'many'"),
    "gzip": (lambda text: gzip.compress(text.encode()), "cannot be read as text"),
    "UTF-16": (lambda text: text.encode("utf-16"), "cannot be read as text"),
    "not a table": (lambda text: b"<html><body>not found</body></html>", "no column|no rows of numbers"),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", CSV)
def test_a_broken_table_is_named(tmp_path: Path, name: str, how: str) -> None:
    reader, text = CSV[name]
    damage, message = BROKEN[how]
    (tmp_path / "a.csv").write_bytes(damage(text))
    assert re.search(message, refused(reader, tmp_path / "a.csv"))


def image(width: int = 30) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, width), dtype=np.uint8)).save(content, "png")
    return content.getvalue()


def mixtures(path: Path) -> Any:
    return ICAMixtures(source=str(path), num_sources=4, patch_size=4, train_size=20, validation_size=5, test_size=5)


def packed() -> bytes:
    """A tar.gz of an image."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        member = tarfile.TarInfo("a.png")
        member.size = len(image())
        tar.addfile(member, io.BytesIO(image()))
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b""),
        ("a.npy", b"\x93NUMPY"),
        ("a.npy", gzip.compress(b"numbers", mtime=0)),
        ("cut.npy", None),
        ("zip.npy", None),
        ("objects.npy", None),
        ("scalar.npy", None),
    ],
)
def test_a_broken_array_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name == "cut.npy":
        np.save(path, np.zeros((9, 2)))
        path.write_bytes(path.read_bytes()[:-5])
    elif name == "zip.npy":
        with path.open("wb") as file:
            np.savez(file, a=np.zeros((9, 2)))
    else:
        np.save(path, np.array([{}] * 9) if name == "objects.npy" else np.array(3.0))
    assert "numpy.save" in refused(table, path) or "save an array" in refused(table, path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.png", image()[:200]),
        ("a.png", b""),
        ("a.tar.gz", packed()[:150]),
        ("a.tar.gz", b"not an archive"),
        ("a.tar.gz", b""),
    ],
)
def test_broken_photographs_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refused(mixtures, tmp_path / name)


READERS: list[tuple[str, Callable[[Path], Any]]] = [
    *((f"{name}.csv", reader) for name, (reader, _) in CSV.items()),
    ("array.npy", table),
    ("photograph.png", mixtures),
    ("photographs.tar", mixtures),
]


@pytest.mark.parametrize(("name", "reader"), READERS)
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch, name: str, reader: Any) -> None:
    """Root may read everything: the refusal is injected."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / name).write_bytes(b"0")
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(tarfile, "open", refuse)
    assert "Permission denied" in refused(reader, tmp_path / name)


@pytest.mark.parametrize(("name", "reader"), READERS[:6])
def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path, name: str, reader: Any) -> None:
    (tmp_path / name).mkdir()
    assert "which is a folder; give a file" in refused(reader, tmp_path / name)


@pytest.mark.parametrize(("name", "reader"), READERS)
def test_a_missing_file_is_named(tmp_path: Path, name: str, reader: Any) -> None:
    assert "there is no such file" in refused(reader, tmp_path / name)


def test_mnist_that_may_not_be_read_is_named(tiny_root: Path, monkeypatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    data = MNIST(root=str(tiny_root), validation_size=10)
    data.prepare_data()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match="cannot be read .Permission denied.; check the path and its permissions"):
        data.setup("fit")
