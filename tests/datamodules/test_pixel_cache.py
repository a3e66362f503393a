"""The cache of decoded images: decoded once, resumed after a kill, and never trusted when damaged."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encoded, pixels, write_files

from datamodules import pixel_cache
from datamodules.image_files import decode, open_images
from datamodules.pixel_cache import Decoded, PixelCache

pytestmark = pytest.mark.filterwarnings("ignore:skipped 2 of the 30 images")

COUNT = 30
BROKEN = (4, 17)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALWS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pixel_cache, "BLOCK", 7)
    monkeypatch.setattr(pixel_cache, "GROUP", 3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    files = {f"{number:02}.png": encoded(pixels(number)) for number in range(COUNT)}
    return write_files(tmp_path / "a.tar", {**files, **{f"{number:02}.png": b"" for number in BROKEN}})


def cache(source: Path, turn: Callable[[bytes], np.ndarray] | None = None, **settings: object) -> PixelCache:
    files = open_images(source, "data.path")
    return PixelCache("Test", files, (3, 8, 8), settings, turn or (lambda content: decode(content, 3, 8)))


def check(decoded: Decoded) -> None:
    kept = [number for number in range(COUNT) if number not in BROKEN]
    assert decoded.files.tolist() == kept
    assert decoded.skipped == [f"{number:02}.png (no image)" for number in BROKEN]
    expected = np.stack([pixels(number).transpose(2, 0, 1) for number in kept])
    assert torch.equal(decoded.pixels, torch.from_numpy(expected))


def counted(counts: list[int]) -> Callable[[bytes], np.ndarray]:
    def turn(content: bytes) -> np.ndarray:
        counts.append(1)
        return decode(content, 3, 8)

    return turn


def test_images_are_decoded_once(source: Path) -> None:
    counts: list[int] = []
    check(cache(source, counted(counts)).open())
    assert len(counts) == COUNT
    check(cache(source, counted(counts)).open())
    assert len(counts) == COUNT
    assert cache(source, crop=4).folder != cache(source).folder
    os.utime(source, (1, 1))
    check(cache(source, counted(counts)).open())
    assert len(counts) == 2 * COUNT


def test_what_is_written_to_the_tensor_does_not_reach_the_file(source: Path) -> None:
    decoded = cache(source).open()
    decoded.pixels[:] = 0
    check(cache(source).open())


def _slow(content: bytes) -> np.ndarray:
    time.sleep(0.03)
    return decode(content, 3, 8)


def test_a_decoding_that_was_killed_goes_on_where_it_was(source: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=lambda: cache(source, _slow).open())
    process.start()
    folder = cache(source).folder
    for _ in range(500):
        if (folder / "journal.jsonl").exists() and (folder / "journal.jsonl").read_text().count("\n") >= 2:
            break
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (folder / "index.json").exists()
    counts: list[int] = []
    check(cache(source, counted(counts)).open())
    assert 0 < len(counts) <= COUNT - 14
    assert not (folder / "journal.jsonl").exists()


@pytest.mark.parametrize("damage", ["half a line", "a lost tail", "a changed byte", "more pixels"])
def test_what_a_kill_left_half_written_is_done_again(source: Path, damage: str) -> None:
    class Killed(BaseException):
        pass

    last = encoded(pixels(27))

    def killed(content: bytes) -> np.ndarray:
        if content == last:  # of a file, not of how many before it: several threads decode, in any order
            raise Killed
        return decode(content, 3, 8)

    with pytest.raises(Killed):
        cache(source, killed).open()
    folder = cache(source).folder
    journal, stored = folder / "journal.jsonl", folder / "pixels.bin"
    assert journal.read_text().count("\n") == 3
    content = stored.read_bytes()
    if damage == "half a line":
        journal.write_text(journal.read_text() + '{"files": 28, "skip')
    elif damage == "a lost tail":
        stored.write_bytes(content[:-100])
    elif damage == "a changed byte":
        stored.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        stored.write_bytes(content + bytes(100))
    check(cache(source).open())


@pytest.mark.parametrize("damage", ["pixels", "short", "gone", "index", "no json"])
def test_a_damaged_cache_is_made_anew_with_a_warning(source: Path, damage: str) -> None:
    cache(source).open()
    folder = cache(source).folder
    stored, index = folder / "pixels.bin", folder / "index.json"
    if damage == "pixels":
        content = bytearray(stored.read_bytes())
        content[100] ^= 1
        stored.write_bytes(content)
    elif damage == "short":
        stored.write_bytes(stored.read_bytes()[:-1])
    elif damage == "gone":
        stored.unlink()
    else:
        index.write_text("{}" if damage == "index" else "{")
    with pytest.warns(UserWarning, match="is damaged; its images are decoded anew"):
        check(cache(source).open())
    check(cache(source).open())


def test_several_processes_decode_once(source: Path, tmp_path: Path) -> None:
    def work() -> None:
        def turn(content: bytes) -> np.ndarray:
            with open(tmp_path / "count", "ab") as file:
                file.write(b".")
            return decode(content, 3, 8)

        check(cache(source, turn).open())

    processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "count").read_bytes()) == COUNT
