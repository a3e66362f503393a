"""Checkpoint files: whole or not there, the one before kept, damage found."""

from __future__ import annotations

import ast
import errno
import json
import os
import resource
import shutil
import sys
import tempfile
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


STEPS = ("tempfile.mkstemp", "os.fdopen", "os.fsync", "os.chmod", "os.replace")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_whatever_the_system_refuses_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch, step: str, number) -> None:
    """A full disk, a quota, a lost permission, a read-only file system, a broken disk; at each call of a write."""
    last = write(tmp_path, 1.0, 2.0)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"lightning_alws.files.{step}", refuse)
    with pytest.raises(UserError, match=rf"last\.ckpt cannot be written \({os.strerror(number)}\)"):
        write(tmp_path, 3.0)
    monkeypatch.undo()
    assert value(last_whole(tmp_path)) == 2.0
    assert is_whole(tmp_path / "previous.ckpt")
    assert not list(tmp_path.glob(".*"))
    write(tmp_path, 4.0)
    assert value(last) == 4.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and gives up the rights of root")
def test_a_read_only_folder_is_named_and_keeps_its_checkpoint() -> None:
    """By the system itself: a process without the rights of root, in a folder that nobody may write to."""
    folder = Path(tempfile.mkdtemp())  # pytest's own may not be entered by others
    last = write(folder, 1.0)
    folder.chmod(0o555)
    reading, writing = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.seteuid(65534)
                AtomicCheckpointIO().save_checkpoint({"weight": torch.zeros(9)}, last)
            except UserError as error:
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        said = os.read(reading, 1000).decode()
        assert f"the checkpoint {last} cannot be written (Permission denied); free some space, or see that" in said
        folder.chmod(0o755)
        assert value(last_whole(folder)) == 1.0
        assert sorted(file.name for file in folder.iterdir()) == ["checksums.json", "last.ckpt"]
    finally:
        os.close(reading)
        folder.chmod(0o755)
        shutil.rmtree(folder)


class Planted:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return (Path.mkdir, (self.folder,))


@pytest.mark.parametrize("asked", [None, False])
def test_code_is_not_run_whatever_the_caller_asks_for(tmp_path: Path, asked: bool | None) -> None:
    torch.save({"state_dict": {}, "planted": Planted(tmp_path / "proof")}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt", weights_only=asked)
    assert not (tmp_path / "proof").exists()


def test_a_checkpoint_comes_from_a_file_alone() -> None:
    with pytest.raises(UserError, match="ckpt_path is s3://bucket/last.ckpt; a checkpoint is loaded from a local file"):
        AtomicCheckpointIO().load_checkpoint("s3://bucket/last.ckpt")


def test_nothing_is_read_from_files_that_could_run_code() -> None:
    """All of the sources: no pickle but the unpickler that knows arrays alone, no load without its guard."""
    root = Path(__file__).parents[1]
    folders = ("lightning_alws", "callbacks", "datamodules", "benchmarks")
    files = [root / "cli.py", *(file for folder in folders for file in (root / folder).rglob("*.py"))]
    seen = 0
    for file in files:
        text = file.read_text()
        for node in ast.walk(ast.parse(text)) if ".load" in text else ():
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            seen += name == "torch.load"
            assert name not in ("pickle.load", "pickle.loads", "dill.load", "joblib.load", "yaml.load"), file
            assert name != "torch.load" or given.get("weights_only") == "True", file
            assert name not in ("np.load", "numpy.load") or given.get("allow_pickle") == "False", file
    assert seen >= 5


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
