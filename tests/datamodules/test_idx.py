"""Reading IDX files: what torchvision reads, and a named error for every way a file can be wrong."""

import gzip
import os
import struct
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import torchvision
from torch.nn.functional import pad

from datamodules import MNIST, BinarizedMNIST, FashionMNIST
from datamodules.idx import IdxFolder, default_root, read_idx
from lightning_alws.errors import UserError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_pixels_and_labels_are_those_that_torchvision_reads(idx_root, name, packed):
    root = idx_root(name, packed=packed)
    ours = {part: IdxFolder(str(root), name).read(part, 10) for part in ("train", "test")}
    if packed:
        for path in (root / name / "raw").glob("*.gz"):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    for part, (images, labels) in ours.items():
        theirs = getattr(torchvision.datasets, name)(str(root), train=part == "train", download=False)
        assert torch.equal(images[:, 0], theirs.data)
        assert torch.equal(labels, theirs.targets)


@pytest.mark.parametrize(("kind", "size"), [(MNIST, 50), (FashionMNIST, 50), (BinarizedMNIST, 50)])
def test_packed_files_are_read_without_writing_beside_them(idx_root, kind, size):
    root = idx_root(kind.folder)
    before = sorted(root.rglob("*"))
    data = kind(root=str(root), validation_size=10)
    data.prepare_data()
    data.setup("fit")
    assert data.sizes["train"] == size
    assert sorted(root.rglob("*")) == before


def _repack(path: Path, change) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def _with_header(content: bytes, *numbers: int) -> bytes:
    header = struct.pack(f">{len(numbers)}I", *numbers)
    return header + content[len(header) :]


BREAKAGES = {
    "gzip cut short": (IMAGES, lambda p: p.write_bytes(p.read_bytes()[:-40]), "a whole gzip file"),
    "not gzip": (IMAGES, lambda p: p.write_bytes(b"<html>not found</html>"), "a whole gzip file"),
    "gzip checksum": (IMAGES, lambda p: p.write_bytes(p.read_bytes()[:-8] + bytes(8)), "a whole gzip file"),
    "gzip body": (IMAGES, lambda p: p.write_bytes(p.read_bytes()[:10] + b"\xff" * 50), "a whole gzip file"),
    "empty file": (IMAGES, lambda p: p.write_bytes(b""), "expected an IDX header of 16 bytes, found 0 bytes"),
    "empty content": (IMAGES, lambda p: _repack(p, lambda c: b""), "expected an IDX header of 16 bytes, found 0"),
    "magic": (IMAGES, lambda p: _repack(p, lambda c: _with_header(c, 2052)), "the magic number 2051 .* found 2052"),
    "labels as images": (
        IMAGES,
        lambda p: p.write_bytes((p.parent / f"{LABELS}.gz").read_bytes()),
        "the magic number 2051 .* found 2049",
    ),
    "image size": (
        IMAGES,
        lambda p: _repack(p, lambda c: _with_header(c, 2051, 60, 32, 28)),
        "dimensions n x 28 x 28, found 60 x 32 x 28",
    ),
    "no images": (IMAGES, lambda p: _repack(p, lambda c: _with_header(c, 2051, 0)[:16]), "found 0 x 28 x 28"),
    "too few pixels": (IMAGES, lambda p: _repack(p, lambda c: c[:-1]), "expected 47040 values, .* found 47039"),
    "too many pixels": (IMAGES, lambda p: _repack(p, lambda c: c + b"\0"), "expected 47040 values, .* found 47041"),
    "fewer labels": (
        LABELS,
        lambda p: _repack(p, lambda c: _with_header(c, 2049, 59)[:-1]),
        "expected 60 labels, one for each image in .*train-images-idx3-ubyte.gz, found 59",
    ),
    "label too large": (LABELS, lambda p: _repack(p, lambda c: c[:-1] + b"\x0a"), "labels below 10, found 10"),
}


@pytest.mark.parametrize(("name", "break_it", "message"), BREAKAGES.values(), ids=BREAKAGES.keys())
def test_a_broken_file_is_named_with_what_was_expected_and_what_to_do(idx_root, name, break_it, message):
    root = idx_root()
    path = root / "MNIST" / "raw" / f"{name}.gz"
    break_it(path)
    data = MNIST(root=str(root), validation_size=10)
    data.prepare_data()  # the file is there; only reading it can tell
    with pytest.raises(UserError, match=message) as error:
        data.setup("fit")
    assert str(error.value).startswith(str(path))
    assert "replace it, or delete it" in str(error.value)


def test_a_broken_raw_file_is_not_passed_over_for_the_packed_one(idx_root):
    root = idx_root()
    raw = root / "MNIST" / "raw" / IMAGES
    raw.write_bytes(b"")
    with pytest.raises(UserError, match=f"{raw} is broken"):
        MNIST(root=str(root), validation_size=10).setup()


def test_a_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} cannot be read .*check the path"):
        read_idx(tmp_path, (None,))


@pytest.mark.parametrize("step", ["prepare_data", "setup"])
def test_missing_files_without_download(idx_root, step):
    root = idx_root()
    (root / "MNIST" / "raw" / f"{LABELS}.gz").unlink()
    with pytest.raises(UserError, match=f"root={root}: .* lacks {LABELS} .* root, or ALWS_DATA .* download=true"):
        getattr(MNIST(root=str(root), download=False), step)()


@pytest.fixture
def mirrors(idx_root, tmp_path_factory, monkeypatch):
    """torchvision's addresses of MNIST, led to a server of tiny files, with their md5; the first mirror has none."""
    served = idx_root() / "MNIST" / "raw"

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"{address}gone/", address])
    md5 = torchvision.datasets.utils.calculate_md5
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", [(p.name, md5(p)) for p in served.iterdir()])
    yield served, tmp_path_factory.mktemp("home") / "not" / "yet"
    server.shutdown()
    server.server_close()


def test_a_download_fetches_only_what_is_missing(mirrors):
    served, root = mirrors
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / LABELS).write_bytes(b"mine")
    MNIST(root=str(root)).prepare_data()
    assert {p.name for p in folder.iterdir()} == {p.name for p in served.iterdir()} - {f"{LABELS}.gz"} | {LABELS}
    assert (folder / LABELS).read_bytes() == b"mine"
    assert (folder / f"{IMAGES}.gz").read_bytes() == (served / f"{IMAGES}.gz").read_bytes()


def test_a_download_makes_the_root_and_the_data_set_loads(mirrors):
    _, root = mirrors
    data = MNIST(root=str(root), validation_size=10)
    data.prepare_data()
    data.setup()
    assert data.sizes == {"train": 50, "val": 10, "test": 20}


def test_a_download_with_the_wrong_md5_leaves_nothing_behind(mirrors):
    served, root = mirrors
    (served / f"{IMAGES}.gz").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"download failed .*corrupted.* root, or ALWS_DATA"):
        IdxFolder(str(root), "MNIST").download()
    assert not [p for p in (root / "MNIST" / "raw").iterdir() if IMAGES in p.name]


def test_a_failed_download_names_root_and_files(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://localhost:1/"])
    with pytest.raises(UserError, match=f"root={tmp_path}: .* lacks {IMAGES}, {LABELS}, .*download failed .*refused"):
        FashionMNIST(root=str(tmp_path)).prepare_data()


def test_a_root_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"download failed .*Not a directory.* root, or ALWS_DATA"):
        MNIST(root=str(tmp_path / "file" / "data")).prepare_data()


def test_root_defaults_to_the_environment_then_to_data(idx_root, monkeypatch):
    root = idx_root()
    monkeypatch.setenv("ALWS_DATA", str(root))
    data = MNIST(validation_size=10, download=False)
    data.prepare_data()
    assert data.files.folder == root / "MNIST" / "raw"
    monkeypatch.delenv("ALWS_DATA")
    assert default_root() == "data"
    monkeypatch.setenv("HOME", str(root.parent))
    assert IdxFolder(os.path.join("~", root.name), "MNIST").missing() == []


def test_the_real_files_are_whole(real_root):
    for name in ("MNIST", "FashionMNIST"):
        images, labels = IdxFolder(str(real_root), name).read("test", 10)
        assert images.shape == (10000, 1, 28, 28)
        assert labels.bincount().min() > 800


def test_torchvision_reads_the_real_images_alike(real_root, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for path in (real_root / "MNIST" / "raw").glob("*.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    theirs = torchvision.datasets.MNIST(str(tmp_path), train=False, download=False)
    data = MNIST(root=str(real_root))
    data.setup()
    expected = pad(theirs.data.float() / 255, (2, 2, 2, 2)) * 2 - 1
    assert torch.equal(data.images("test")[:, 0], expected)
    assert torch.equal(data.labels("test"), theirs.targets)
