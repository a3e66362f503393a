"""Images decoded once, into one memory-mapped uint8 file under ``$ALWS_CACHE``.

A cache is a folder with ``pixels.bin``, the images (n, C, H, W) one after the other, and ``index.json``, which is
written last: what has none is not finished. Until then ``journal.jsonl`` tells, block by block, how far the decoding
came, so that one that was killed goes on where it was. Blocks and the whole are checked by SHA-256.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytorch_lightning as pl
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from datamodules.image_files import ImageFiles, Unreadable, left_out, refusal, some_of, warn
from lightning_alws.files import default_cache_dir, write_json

PIXELS, INDEX, JOURNAL = "pixels.bin", "index.json", "journal.jsonl"
VERSION = 1  # of what a cache holds; another one is decoded anew
BLOCK = 1000  # files between two entries of the journal, about a second's work
GROUP = 64  # files handed to a thread at once, unless they are large
GROUP_BYTES = 2**23

Decode = Callable[[bytes], np.ndarray]


@dataclass(frozen=True)
class Decoded:
    """The images of a source.

    Attributes:
        pixels: uint8 (n, C, H, W), memory-mapped.
        files: which of the source's files each image is, int64 (n,).
        skipped: files that cannot be used, each with the reason in brackets.
    """

    pixels: Tensor
    files: Tensor
    skipped: list[str]


class PixelCache:
    """The decoded images of one source under one group of settings.

    Args:
        name: of the data set, part of the folder's name.
        files: the source.
        shape: (C, H, W) of every decoded image.
        settings: what else the result depends on.
        decode: makes uint8 (C, H, W) of a file's content, or raises :class:`Unreadable`; called by several threads.
    """

    def __init__(
        self, name: str, files: ImageFiles, shape: tuple[int, int, int], settings: dict[str, Any], decode: Decode
    ) -> None:
        self.name, self.files, self.shape, self.decode = name, files, shape, decode
        key = json.dumps([VERSION, files.fingerprint(), shape, settings], sort_keys=True)
        self.folder = default_cache_dir() / "images" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def open(self) -> Decoded:
        """The images, decoded now if they are not yet, by one process while others wait.

        Raises UserError if the folder cannot be written to or read, or more than half of the files are unusable.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / "lock"):
                index = self._finished()
                if index is None:
                    index = self._decode()
                skipped = dict(index["skipped"])
                named = [left_out(self.files.names[number], reason) for number, reason in skipped.items()]
                self._judge(named)
                pixels = _mapped(self.folder / PIXELS, (index["rows"], *self.shape))
        except OSError as error:
            raise refusal(
                f"the cache of decoded images {self.folder} cannot be used ({error.strerror or error}); set ALWS_CACHE "
                f"to a folder that can be written to and has {self._megabytes()} MB of space."
            ) from error
        kept = [number for number in range(len(self.files.names)) if number not in skipped]
        return Decoded(pixels, torch.tensor(kept, dtype=torch.int64), named)

    def _megabytes(self) -> int:
        return -(-len(self.files.names) * math.prod(self.shape) // 2**20)

    def _judge(self, skipped: list[str]) -> None:
        if not skipped:
            return
        total = len(self.files.names)
        which = some_of(skipped)
        if 2 * len(skipped) > total:
            raise refusal(
                f"{len(skipped)} of the {total} images in {self.files.source} cannot be used: {which}; repair or "
                "remove them, or check the settings of the data."
            )
        warn(f"skipped {len(skipped)} of the {total} images in {self.files.source}, which cannot be used: {which}.")

    def _finished(self) -> dict[str, Any] | None:
        """The index of a whole cache; None, with a warning where something is damaged, if it must be decoded."""
        path = self.folder / INDEX
        if not path.exists():
            return None
        try:
            index = json.loads(path.read_text())
            with open(self.folder / PIXELS, "rb") as file:
                intact = hashlib.file_digest(file, "sha256").hexdigest() == index["sha256"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            warn(f"the cache {self.folder} is damaged; its images are decoded anew.")
            (self.folder / JOURNAL).unlink(missing_ok=True)
            path.unlink()
            return None
        return index

    def _decode(self) -> dict[str, Any]:
        with contextlib.ExitStack() as stack:
            pixels = stack.enter_context(open(self.folder / PIXELS, "ab+"))
            journal = stack.enter_context(open(self.folder / JOURNAL, "a+"))
            done, skipped, digest = self._resume(pixels, journal)
            bar = stack.enter_context(_progress())
            task = bar.add_task(f"Decoding {self.name}", total=len(self.files.names), completed=done)
            block: list[np.ndarray] = []
            left_out: list[tuple[int, str]] = []
            for number, result in self._results(done):
                if isinstance(result, str):
                    left_out.append((number, result))
                else:
                    block.append(result)
                done = number + 1
                if done % GROUP == 0:
                    bar.update(task, completed=done)
                if len(block) + len(left_out) == BLOCK or done == len(self.files.names):
                    content = b"".join(image.tobytes() for image in block)
                    entry = {"files": done, "skipped": left_out, "sha256": hashlib.sha256(content).hexdigest()}
                    _append(pixels, content)  # on the disk before the journal says so
                    _append(journal, json.dumps(entry) + "\n")
                    digest.update(content)
                    skipped += left_out
                    block, left_out = [], []
        index = {
            "source": str(self.files.source),
            "rows": done - len(skipped),
            "shape": self.shape,
            "skipped": skipped,
            "sha256": digest.hexdigest(),
        }
        write_json(self.folder / INDEX, index)
        (self.folder / JOURNAL).unlink()
        pl.utilities.rank_zero_info(f"decoded {index['rows']} images of {self.name} into {self.folder}")
        return index

    def _resume(self, pixels: IO[bytes], journal: IO[str]) -> tuple[int, list[tuple[int, str]], Any]:
        """Files done, those skipped, and the digest so far; both files cut to what is whole."""
        done, skipped, digest, length, lines = 0, [], hashlib.sha256(), 0, ""
        pixels.seek(0)
        journal.seek(0)
        for line in journal:
            try:
                entry = json.loads(line)
                count = entry["files"] - done - len(entry["skipped"])
                content = pixels.read(count * math.prod(self.shape))
                if hashlib.sha256(content).hexdigest() != entry["sha256"]:
                    break
                skipped += [(number, reason) for number, reason in entry["skipped"]]
                done = entry["files"]
            except (ValueError, KeyError, TypeError):
                break  # the line that was being written when the process died
            digest.update(content)
            length += len(content)
            lines += line
        pixels.truncate(length)
        journal.truncate(len(lines))
        if done:
            pl.utilities.rank_zero_info(f"going on with the decoding of {self.name} after {done} files")
        return done, skipped, digest

    def _results(self, start: int) -> Iterator[tuple[int, np.ndarray | str]]:
        """From file ``start`` on: its number, and its pixels or why there are none. Files are read in order."""
        workers = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            pending: deque[tuple[list[int], Future[list[np.ndarray | str]]]] = deque()
            numbers: list[int] = []
            contents: list[bytes | str] = []
            weight = 0
            for number in range(start, len(self.files.names)):
                try:
                    content: bytes | str = self.files.read(number)
                except Unreadable as error:
                    content = str(error)
                numbers.append(number)
                contents.append(content)
                weight += len(content)
                if len(contents) == GROUP or weight > GROUP_BYTES:
                    pending.append((numbers, pool.submit(self._group, contents)))
                    numbers, contents, weight = [], [], 0
                while len(pending) > 2 * workers:
                    yield from _zipped(pending.popleft())
            pending.append((numbers, pool.submit(self._group, contents)))
            while pending:
                yield from _zipped(pending.popleft())

    def _group(self, contents: list[bytes | str]) -> list[np.ndarray | str]:
        results: list[np.ndarray | str] = []
        for content in contents:
            try:
                results.append(content if isinstance(content, str) else self.decode(content))
            except Unreadable as error:
                results.append(str(error))
        return results


def _zipped(group: tuple[list[int], Future[list[np.ndarray | str]]]) -> Iterator[tuple[int, np.ndarray | str]]:
    return zip(group[0], group[1].result(), strict=True)


def _append(file: IO[Any], content: Any) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    # Private: what is written to the tensor never reaches the file.
    return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=torch.uint8).view(shape)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Inside, this process alone; the system frees the lock of one that dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
