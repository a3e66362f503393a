"""CIFAR-10: tiny files in the published formats, broken ones, and ones that mean harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import CIFAR10
from datamodules.cifar10 import TEST, TRAIN
from lightning_alws.errors import UserError

PER_FILE = 4


def batch(number: int) -> tuple[np.ndarray, list[int]]:
    """Pixels (n, 3072), red, green and blue planes, and labels of a file."""
    random = np.random.default_rng(number)
    return random.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8), random.integers(0, 10, PER_FILE).tolist()


def binary(pixels: np.ndarray, labels: list[int]) -> bytes:
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True))


def text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value  # SHORT_BINSTRING, which Python 3 no longer writes


def pickled(pixels: np.ndarray, labels: list[int], dtype: bytes = b"u1") -> bytes:
    """A batch as Python 2's cPickle wrote it with protocol 2, opcode by opcode."""
    number = lambda value: b"J" + struct.pack("<i", value)  # noqa: E731
    return (
        b"\x80\x02}(" + text(b"batch_label") + text(b"training batch 1 of 5")
        + text(b"labels") + b"](" + b"".join(number(label) for label in labels) + b"e"
        + text(b"data") + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b")
        + b"\x87R(" + number(1) + number(len(pixels)) + number(3072) + b"\x86"
        + b"cnumpy\ndtype\n" + text(dtype) + number(0) + number(1) + b"\x87R("
        + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
        + b"\x89T" + struct.pack("<i", pixels.nbytes) + pixels.tobytes() + b"tb"
        + text(b"filenames") + b"](" + b"".join(text(b"leptodactylus_%d.png" % i) for i in range(len(labels))) + b"eu."
    )  # fmt: skip


def write(root: Path, version: str, packed: bool) -> None:
    suffix, make = {"binary": (".bin", binary), "python": ("", pickled)}[version]
    folder = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}[version]
    files = {name + suffix: make(*batch(number)) for number, name in enumerate((*TRAIN, TEST))}
    files["readme.html"] = b"<html>"
    if packed:
        with tarfile.open(root / f"cifar-10-{version}.tar.gz", "w:gz") as archive:
            for name, content in reversed(files.items()):
                member = tarfile.TarInfo(f"{folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return
    (root / folder).mkdir(parents=True)
    for name, content in files.items():
        (root / folder / name).write_bytes(content)


def ready(root: Path, **settings: object) -> CIFAR10:
    data = CIFAR10(root=str(root), download=False, **{"validation_size": 5, "verify_checksum": False, **settings})  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_version_gives_the_images_that_were_written(tmp_path: Path, version: str, packed: bool) -> None:
    write(tmp_path, version, packed)
    data = ready(tmp_path)
    assert data.sizes == {"train": 15, "val": 5, "test": 4}
    assert (data.image_shape, data.num_classes, data.pixel_range) == ((3, 32, 32), 10, (-1, 1))
    pixels, labels = batch(5)
    expected = torch.from_numpy(pixels).view(-1, 3, 32, 32).float() / 127.5 - 1
    torch.testing.assert_close(data.images("test"), expected)
    assert data.labels("test").tolist() == labels
    rows = torch.cat([data.rows("train"), data.rows("val")]).flatten(1).tolist()
    written = [row for number in range(5) for row in batch(number)[0].tolist()]
    assert sorted(rows) == sorted(written)
    by_pixels = {tuple(row): label for number in range(5) for row, label in zip(*batch(number), strict=True)}
    found = zip(data.rows("val").flatten(1).tolist(), data.labels("val").tolist(), strict=True)  # type: ignore[union-attr]
    assert all(by_pixels[tuple(row)] == label for row, label in found)


def test_other_files_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    for version in ("binary", "python"):
        for packed in (False, True):
            root = tmp_path / f"{version}{packed}"
            root.mkdir()
            write(root, version, packed)
            message = "found 4" if (version, packed) == ("binary", False) else "its MD5 is .*verify_checksum=false"
            with pytest.raises(UserError, match=message):
                ready(root, verify_checksum=True)


def test_broken_files_are_named(tmp_path: Path) -> None:
    def message(name: str, content: bytes | None, version: str = "binary") -> str:
        root = tmp_path / str(len(os.listdir(tmp_path)))
        write(root, version, packed=False)
        path = next(root.iterdir()) / name
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError) as error:
            ready(root)
        assert name in str(error.value)
        return str(error.value)

    pixels, labels = batch(0)
    assert "found 12291 bytes" in message("data_batch_3.bin", binary(pixels, labels)[:-1])
    assert "found 0 bytes" in message("test_batch.bin", b"")
    assert "labels from 0 to 9, found" in message("test_batch.bin", binary(pixels, [3, 200, 1, 1]))
    assert "No such file" in message("data_batch_5.bin", None)
    assert "what is none" in message("data_batch_5", pickled(pixels, labels)[:5000], "python")
    assert "not of bytes" in message("data_batch_5", pickled(pixels, labels, b"f4"), "python")
    assert "4, 3072) and (3,)" in message("data_batch_2", pickled(pixels, labels[:3]), "python")
    assert "what is none" in message("test_batch", pickle.dumps([1, 2]), "python")


def test_a_cut_archive_and_one_that_lacks_a_file_are_named(tmp_path: Path) -> None:
    write(tmp_path, "binary", packed=True)
    archive = tmp_path / "cifar-10-binary.tar.gz"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cifar-10-binary.tar.gz is broken: expected a whole"):
        ready(tmp_path)
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("cifar-10-batches-bin/readme.html"))
    with pytest.raises(UserError, match="none named data_batch_1.bin"):
        ready(tmp_path)


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    write(tmp_path, "python", packed=False)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"data": Harm(tmp_path / "harm"), "labels": [0]}, protocol))
        with pytest.raises(UserError, match="it asks for (posix|nt).mkdir, which no batch"):
            ready(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_missing_data_and_a_failed_download_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"not in root=.*cifar-10-binary.tar.gz.*ALWS_DATA.*ImageFolder\.$"):
        ready(tmp_path)
    import torchvision

    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fail)
    with pytest.raises(UserError, match=r"the download failed \(no network\)"):
        CIFAR10(root=str(tmp_path)).prepare_data()
