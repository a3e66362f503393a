"""A file is whole or not there, whatever happens while it is written."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from lightning_alws.files import atomic_write, write_json


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"old", b"new"):
        with atomic_write(path) as file:
            file.write(content)
        assert contents(tmp_path) == {"file": content}


def test_makes_the_folders_above(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a" / "b" / "file", "w") as file:
        file.write("text")
    assert (tmp_path / "a" / "b" / "file").read_text() == "text"


def test_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        (temporary,) = (other for other in tmp_path.iterdir() if other != path)  # same folder, so that a move is atomic
        assert temporary.name.startswith(".")


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [{}, {"file": b"old"}], ids=["new file", "old file"])
def test_exception_keeps_what_was_there(tmp_path: Path, exception: type[BaseException], before: dict) -> None:
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(exception), atomic_write(tmp_path / "file") as file:  # noqa: PT012
        file.write(b"half")
        raise exception
    assert contents(tmp_path) == before


def test_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert contents(tmp_path) == {"file": b"old"}


def test_is_on_the_disk_before_it_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(__import__("os"), name)
        monkeypatch.setattr(f"os.{name}", lambda *a, _n=name, _o=original: (order.append(_n), _o(*a))[1])
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert order == ["fsync", "replace", "fsync"]  # the file, and after the move the folder


def test_others_may_read_it(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_json_is_written_in_order_and_read_back(tmp_path: Path) -> None:
    content = {"b": 1.5, "a": [1, "two", None]}
    write_json(tmp_path / "file.json", content)
    text = (tmp_path / "file.json").read_text()
    assert json.loads(text) == content
    assert text.index('"b"') < text.index('"a"')


def test_json_that_no_other_reader_takes_is_not_written(tmp_path: Path) -> None:
    """NaN is no JSON: half of the readers would refuse the whole file."""
    write_json(tmp_path / "file.json", {"a": 1})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"a": float("nan")})
    assert contents(tmp_path) == before


def test_a_file_system_that_cannot_sync_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("lightning_alws.files.sync_folder", refuse)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert contents(tmp_path) == {"file": b"new"}
