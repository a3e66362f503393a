"""CIFAR-10 from its published files, the binary version or the one for Python; no code in a file is ever run.

Binary: records of 3073 bytes, the label, then 32 x 32 red, green and blue pixels. Python: pickled dictionaries, read
by an unpickler that knows nothing but arrays of bytes. Source: A. Krizhevsky, "Learning multiple layers of features
from tiny images", 2009 (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.download import fetch, require_md5
from datamodules.idx import ROOT_VARIABLE, default_root
from datamodules.images import ImageDataModule
from lightning_alws.errors import UserError

SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
IMAGES_PER_FILE = 10_000
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
TEST = "test_batch"
ADDRESS = "https://www.cs.toronto.edu/~kriz/"
# The folder that an archive unpacks to, the ending of its files, the archive, and its MD5 as published.
BINARY = ("cifar-10-batches-bin", ".bin", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")
PYTHON = ("cifar-10-batches-py", "", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a")
# Of the files of the version for Python, as torchvision lists them; those of the binary version are not published.
PYTHON_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


class CIFAR10(ImageDataModule):
    """Photographs of 10 classes, images (n, 3, 32, 32) in [-1, 1]: 50 000 for training and validation, 10 000 for test.

    The first of these that lies in ``root`` is read: ``cifar-10-batches-bin/``, ``cifar-10-binary.tar.gz`` (not
    unpacked), ``cifar-10-batches-py/``, ``cifar-10-python.tar.gz``.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: validation, test or prediction images per step and process.
        validation_size: images that a seeded permutation of the training set sets apart.
        seed: of the splits and the order.
        root: folder that holds one of the above; by default $ALWS_DATA, else ``data``.
        download: fetch ``cifar-10-binary.tar.gz`` (162 MB) into ``root`` if none of them is there.
        verify_checksum: compare archives and Python's batches with their published MD5s, and count the images of
            unpacked binary files, for which none are published.

    Raises UserError when a size is out of range, or in ``prepare_data`` and ``setup`` when files are missing or broken.
    """

    likelihood = "gaussian"
    image_shape = SHAPE
    num_classes = len(CLASSES)
    white = 255

    def __init__(
        self,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        validation_size: int = 5000,
        seed: int = 0,
        root: str | None = None,
        download: bool = True,
        verify_checksum: bool = True,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, validation_size, seed)
        self.save_hyperparameters(logger=False)
        self.root, self.download, self.verify_checksum = (
            Path(root or default_root()).expanduser(),
            download,
            verify_checksum,
        )
        self.classes = CLASSES

    def prepare_data(self) -> None:
        """Download the binary version if no version is there, or raise a UserError that says what is missing."""
        reason = None
        if self._found() is None and self.download:
            _, _, archive, md5 = BINARY
            reason = fetch(self.root, archive, [ADDRESS + archive], md5)
        if self._found() is None:
            failed = "" if reason is None else f", and the download failed ({reason})"
            raise UserError(
                f"CIFAR10 is not in root={self.root}: it needs {BINARY[0]}/, {BINARY[2]}, {PYTHON[0]}/ or {PYTHON[2]}"
                f"{failed}. Set the argument root, or {ROOT_VARIABLE} in the environment, to the folder that holds one "
                f"of them, or set download=true where there is a network; a folder or tar of the images as JPEG or PNG "
                "files is read by ImageFolder."
            )

    def read_images(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(pixels, labels) of the official training and test set: uint8 (n, 3, 32, 32), int64 (n,)."""
        found = self._found()
        if found is None:
            self.prepare_data()
            found = self._found()
            assert found is not None, "prepare_data() found it"
        path, suffix = found
        wanted = [name + suffix for name in (*TRAIN, TEST)]
        contents = self._folder(path, wanted) if path.is_dir() else self._archive(path, wanted)
        parse = parse_binary if suffix else parse_pickle
        parts = []
        for name in wanted:
            pixels, labels = parse(f"{path}/{name}", contents[name])
            if self.verify_checksum and len(pixels) != IMAGES_PER_FILE:
                raise _broken(f"{path}/{name}", f"{IMAGES_PER_FILE} images", str(len(pixels)))
            parts.append((pixels, labels))
        pixels, labels = (torch.cat([part[index] for part in parts[:-1]]) for index in (0, 1))
        return (pixels, labels), parts[-1]

    def _found(self) -> tuple[Path, str] | None:
        """The folder or archive to be read, and the ending of its files."""
        for folder, suffix, archive, _ in (BINARY, PYTHON):
            for path in (self.root / folder, self.root / archive):
                if os.path.exists(path):  # unlike Path.exists, takes a folder that may not be entered for an empty one
                    return path, suffix
        return None

    def _folder(self, path: Path, wanted: list[str]) -> dict[str, bytes]:
        contents = {}
        for name in wanted:
            try:
                contents[name] = (path / name).read_bytes()
            except OSError as error:
                raise UserError(
                    f"CIFAR10 cannot read {path / name} ({error.strerror}); complete the folder, or remove it to use "
                    "an archive or a download."
                ) from error
            if self.verify_checksum and name in PYTHON_MD5:
                require_md5(path / name, contents[name], PYTHON_MD5[name])
        return contents

    def _archive(self, path: Path, wanted: list[str]) -> dict[str, bytes]:
        contents = {}
        try:
            if self.verify_checksum:
                require_md5(path, None, {archive: md5 for _, _, archive, md5 in (BINARY, PYTHON)}[path.name])
            with tarfile.open(path) as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.isreg() and name in wanted and (file := archive.extractfile(member)) is not None:
                        contents[name] = file.read()
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise _broken(path, "a whole .tar.gz", f"one that does not unpack ({error})") from error
        if missing := [name for name in wanted if name not in contents]:
            raise _broken(path, f"the files {', '.join(wanted)}", f"none named {', '.join(missing)}")
        return contents


def parse_binary(name: str, content: bytes) -> tuple[Tensor, Tensor]:
    """Images uint8 (n, 3, 32, 32) and labels int64 (n,) of a binary file; UserError if it is not made of records."""
    if len(content) == 0 or len(content) % RECORD:
        raise _broken(name, f"records of {RECORD} bytes", f"{len(content)} bytes")
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, RECORD)
    return records[:, 1:].reshape(-1, *SHAPE), _checked(name, records[:, 0].long())


def parse_pickle(name: str, content: bytes) -> tuple[Tensor, Tensor]:
    """The same of a pickled batch; UserError if it is not one, or holds anything but numbers, texts and bytes."""
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        rows, labels = batch[b"data"].values(), torch.tensor(batch[b"labels"], dtype=torch.int64)
    except Exception as error:  # of any kind, from a damaged pickle
        raise _broken(name, "a batch of the version for Python", f"what is none ({error})") from error
    if rows.shape[1:] != (RECORD - 1,) or labels.shape != rows.shape[:1] or len(rows) == 0:
        raise _broken(name, f"n rows of {RECORD - 1} and n labels", f"shapes {rows.shape} and {tuple(labels.shape)}")
    return torch.from_numpy(rows.copy()).view(-1, *SHAPE), _checked(name, labels)


class _Bytes:
    """What a pickled numpy array becomes: its shape and bytes, and only if they are of uint8."""

    def __init__(self, *ignored: Any) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def values(self) -> np.ndarray:
        _, shape, dtype, fortran, content = self._state
        if dtype.name not in (b"u1", "u1") or fortran:
            raise pickle.UnpicklingError(f"an array of {dtype.name!r}, not of bytes row by row")
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)


class _Dtype:
    def __init__(self, name: Any, *ignored: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like mean nothing for uint8."""


class _ArraysOnly(pickle.Unpickler):
    """Makes stand-ins of arrays and refuses every other global, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Bytes
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Bytes if name == "ndarray" else _Dtype
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of CIFAR-10 does")


def _checked(name: str, labels: Tensor) -> Tensor:
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(CLASSES):
        raise _broken(name, "labels from 0 to 9", f"{int(labels.min())} to {int(labels.max())}")
    return labels


def _broken(path: Path | str, expected: str, found: str) -> UserError:
    return UserError(f"{path} is broken: expected {expected}, found {found}; fetch it anew.")
