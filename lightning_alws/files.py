"""Files that are whole or not there: written beside their place and moved in one step; and where caches lie."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lightning_alws.errors import UserError


def read_bytes(path: Path, argument: str) -> bytes:
    """The content of a file that a user names; raises a UserError if there is none, or it cannot be read.

    Args:
        path: the file.
        argument: the option that it came from, for the message.
    """
    if path.is_dir():
        raise UserError(f"{argument} is {path}, which is a folder; give a file.")
    if not path.is_file():
        raise UserError(f"{argument} is {path}, but there is no such file; check the path.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{argument} is {path}, which cannot be read ({error.strerror}); see its permissions."
        ) from error


def read_text(path: Path, argument: str) -> str:
    """As :func:`read_bytes`, the text; a byte order mark, as spreadsheets write, is no part of it."""
    try:
        return read_bytes(path, argument).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{argument} is {path}, which cannot be read as text ({error}); give a CSV file.") from error


def default_cache_dir() -> Path:
    """``$ALWS_CACHE``, or ``~/.cache/alws``."""
    return Path(os.environ.get("ALWS_CACHE") or Path.home() / ".cache" / "alws")


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file object whose content replaces ``path`` when the block ends, and only if it ends without an exception.

    The temporary file lies in the same folder, since a move between file systems is not atomic, and is on the disk
    before the move; the move itself is by the end of the block.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system can; the file is whole in any case
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a power cut could undo a move."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as indented JSON, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=2, sort_keys=False, allow_nan=False)
        file.write("\n")
