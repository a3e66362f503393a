"""Checkpoint files: whole or not there, the one before kept, damage found."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import torch

from lightning_alws.checkpoints import (
    AtomicCheckpointIO,
    checksum,
    compare_with_checkpoint,
    is_whole,
    last_whole,
    remove_remnants,
)
from lightning_alws.errors import UserError


def write(folder: Path, *values: float, name: str = "last.ckpt") -> Path:
    """Save checkpoints of one number under one name, one after another."""
    for value in values:
        AtomicCheckpointIO().save_checkpoint({"weight": torch.full((1000,), value)}, folder / name)
    return folder / name


def value(path: Path) -> float:
    return float(AtomicCheckpointIO().load_checkpoint(path)["weight"][0])


def flip(path: Path, position: int) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """The size that a file may have runs out in the middle of the second one, as a disk does."""
    path, before = tmp_path / "last.ckpt", {"weight": torch.zeros(1000)}
    writer = AtomicCheckpointIO()
    writer.save_checkpoint(before, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"last\.ckpt cannot be written .*continue with --ckpt_path last"):
            writer.save_checkpoint({"weight": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(writer.load_checkpoint(path)["weight"], before["weight"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checksums.json", "last.ckpt"]
    assert last_whole(tmp_path) == path


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    last = write(tmp_path, 1.0)
    assert not (tmp_path / "previous.ckpt").exists()
    write(tmp_path, 2.0, 3.0)
    assert (value(last), value(tmp_path / "previous.ckpt")) == (3.0, 2.0)
    write(tmp_path, 4.0, name="best.ckpt")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "best.ckpt",
        "checksums.json",
        "last.ckpt",
        "previous.ckpt",
    ]


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_is_a_file_of_its_own(tmp_path: Path, monkeypatch, links: bool) -> None:
    """Also where the file system knows no links."""
    if not links:

        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    last = write(tmp_path, 1.0, 2.0)
    assert not os.path.samefile(last, tmp_path / "previous.ckpt")
    assert value(tmp_path / "previous.ckpt") == 1.0


@pytest.mark.parametrize("position", [0, 200, 2000, -1])
def test_a_changed_byte_is_found(tmp_path: Path, position: int) -> None:
    last = write(tmp_path, 1.0, 2.0)
    assert is_whole(last)
    assert last_whole(tmp_path) == last
    flip(last, position)
    assert not is_whole(last)
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged; the run goes on from the one before it"):
        assert last_whole(tmp_path) == tmp_path / "previous.ckpt"
    with pytest.raises(UserError, match="is damaged: its checksum"):
        compare_with_checkpoint(last, {}, resuming=False)


@pytest.mark.parametrize("length", [0, 100, 4000])
def test_a_cut_file_is_found(tmp_path: Path, length: int) -> None:
    last = write(tmp_path, 1.0, 2.0)
    os.truncate(last, length)
    with pytest.warns(UserWarning, match="is damaged"):
        assert value(last_whole(tmp_path)) == 1.0


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        last_whole(tmp_path)
    write(tmp_path, 1.0, 2.0).unlink()
    with pytest.warns(UserWarning, match="is missing"):
        assert value(last_whole(tmp_path)) == 1.0
    flip(tmp_path / "previous.ckpt", 500)
    with pytest.raises(UserError, match="there is no file"):
        last_whole(tmp_path)


def test_the_best_alone_is_gone_on_from(tmp_path: Path) -> None:
    """A kill between a run's first two files leaves it; and it is better than nothing where both others are damaged."""
    best = write(tmp_path, 1.0, name="best.ckpt")
    with pytest.warns(UserWarning, match=r"last\.ckpt is missing, and there is none before it; the run goes on from"):
        assert last_whole(tmp_path) == best


def test_two_damaged_files_end_the_search(tmp_path: Path) -> None:
    last = write(tmp_path, 1.0, 2.0)
    flip(last, 500)
    flip(tmp_path / "previous.ckpt", 500)
    with pytest.raises(UserError, match="is damaged and there is no whole previous.ckpt"):
        last_whole(tmp_path)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_kill_between_the_system_calls_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch, call: int) -> None:
    """Of the third checkpoint, the first, second or third move does not happen: one of the two before is the last."""
    write(tmp_path, 1.0, 2.0)
    moves, replace = [], os.replace

    def killed(source: str, target: str) -> None:
        if len(moves) == call:
            raise KeyboardInterrupt
        moves.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 3.0)
    monkeypatch.undo()
    assert value(last_whole(tmp_path)) == 2.0
    write(tmp_path, 4.0)
    assert (value(last_whole(tmp_path)), value(tmp_path / "previous.ckpt")) == (4.0, 2.0)
    assert is_whole(tmp_path / "previous.ckpt")


def test_a_checkpoint_that_came_alone_needs_to_be_readable(tmp_path: Path) -> None:
    last = write(tmp_path, 1.0)
    (tmp_path / "checksums.json").write_text("not json")
    assert is_whole(last)
    os.truncate(last, 1000)
    assert not is_whole(last)


def test_checksums_are_those_of_the_files_and_few(tmp_path: Path) -> None:
    last = write(tmp_path, *range(30))
    known = json.loads((tmp_path / "checksums.json").read_text())["last.ckpt"]
    assert known[-2:] == [checksum(tmp_path / "previous.ckpt"), checksum(last)]
    assert len(known) == 20


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch) -> None:
    """Root may write everywhere: the refusal is injected where the temporary file is made."""
    last = write(tmp_path, 1.0)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lightning_alws.files.tempfile.mkstemp", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\)"):
        write(tmp_path, 2.0)
    assert value(last) == 1.0
    assert is_whole(last)


def test_remnants_of_a_killed_process_are_cleared_away(tmp_path: Path) -> None:
    last = write(tmp_path, 1.0, 2.0)
    for name in (".last.ckpt-a1b2", ".best.ckpt-x", ".checksums.json-c", ".previous.ckpt-link", ".mine-1"):
        (tmp_path / name).write_bytes(b"half")
    remove_remnants(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".mine-1",
        "checksums.json",
        "last.ckpt",
        "previous.ckpt",
    ]
    assert is_whole(last)
