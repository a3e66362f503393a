"""IDX files, the format of MNIST and its relatives: found under a root folder, downloaded if need be, and checked.

Big-endian: a magic number (2048 + number of dimensions, for uint8 values), each dimension as an int32, then the values
(http://yann.lecun.com/exdb/mnist). A file may lie raw or as ``.gz``; a ``.gz`` is read as it is, so that the folder
may be read-only.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from datamodules.download import fetch
from lightning_alws.errors import UserError

ROOT_VARIABLE = "ALWS_DATA"
PARTS = {"train": "train", "test": "t10k"}  # our word: the files' word


def default_root() -> str:
    """The folder named by the environment variable ALWS_DATA, else ``data``."""
    return os.environ.get(ROOT_VARIABLE) or "data"


def read_idx(path: Path, shape: tuple[int | None, ...]) -> Tensor:
    """The values of one IDX file, uint8 of the given shape; ``None`` stands for any size of 1 or more.

    Raises:
        UserError: the file cannot be read or unpacked, or is not what the shape says; it names the file.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _broken(path, "a whole gzip file", f"one that does not unpack ({error})") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error
    header = 4 + 4 * len(shape)
    if len(content) < header:
        raise _broken(path, f"an IDX header of {header} bytes", f"{len(content)} bytes")
    magic, *sizes = struct.unpack(f">{1 + len(shape)}I", content[:header])
    if magic != 2048 + len(shape):
        raise _broken(path, f"the magic number {2048 + len(shape)} of uint8 IDX in {len(shape)} dimensions", str(magic))
    for found, wanted in zip(sizes, shape, strict=True):
        if found == 0 or (wanted is not None and found != wanted):
            raise _broken(path, f"the dimensions {_dimensions(shape)}", _dimensions(sizes))
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:]
    expected = torch.Size(sizes).numel()
    if len(values) != expected:
        raise _broken(path, f"{expected} values, as its header says", f"{len(values)}")
    return values.reshape(sizes)


class IdxFolder:
    """The four files of one data set, laid out as torchvision does: ``root/<name>/raw/train-images-idx3-ubyte[.gz]``.

    Args:
        root: folder of all data sets; a leading ``~`` is the home folder.
        name: of the class in ``torchvision.datasets`` that knows where the files are to be had, and of the folder.
    """

    def __init__(self, root: str, name: str) -> None:
        self.root, self.name = root, name
        self.folder = Path(root).expanduser() / name / "raw"

    def find(self, file: str) -> Path | None:
        """The raw file if there is one, else the packed one; a raw file is never passed over for being broken."""
        # os.path.exists, unlike Path.exists, takes a folder that may not be entered for an empty one
        return next((path for path in (self.folder / file, self.folder / f"{file}.gz") if os.path.exists(path)), None)

    def missing(self) -> list[str]:
        """Names of the files that are there neither raw nor packed."""
        names = [f"{part}-{kind}-ubyte" for part in PARTS.values() for kind in ("images-idx3", "labels-idx1")]
        return [name for name in names if self.find(name) is None]

    def require(self) -> None:
        """Raise a UserError that lists the missing files, if any."""
        if self.missing():
            raise self._absent("", "set download=true where there is a network")

    def download(self) -> None:
        """Fetch what is missing, and only that, as ``.gz`` from the addresses that torchvision knows, checked by md5.

        Raises:
            UserError: no network, a file that is not the expected one, or a root that cannot be written.
        """
        import torchvision  # takes seconds to import, and only a download needs it

        source = getattr(torchvision.datasets, self.name)
        md5 = dict(source.resources)
        for name in self.missing():
            addresses = [f"{mirror}{name}.gz" for mirror in source.mirrors]
            reasons = fetch(self.folder, f"{name}.gz", addresses, md5[f"{name}.gz"])
            if reasons is not None:
                raise self._absent(f", and the download failed ({reasons})", "retry with a network and a writable root")

    def read(self, part: str, classes: int) -> tuple[Tensor, Tensor]:
        """Images, uint8 (n, 1, 28, 28), and labels, int64 (n,), of the part ``"train"`` or ``"test"``.

        Raises:
            UserError: a file is missing or broken, or the two do not belong together.
        """
        self.require()
        image_path = self.find(f"{PARTS[part]}-images-idx3-ubyte")
        label_path = self.find(f"{PARTS[part]}-labels-idx1-ubyte")
        assert image_path is not None, "require() found it"
        assert label_path is not None, "require() found it"
        images, labels = read_idx(image_path, (None, 28, 28)), read_idx(label_path, (None,))
        if len(labels) != len(images):
            raise _broken(label_path, f"{len(images)} labels, one for each image in {image_path}", str(len(labels)))
        if labels.max() >= classes:
            raise _broken(label_path, f"labels below {classes}", str(int(labels.max())))
        return images.unsqueeze(1), labels.long()

    def _absent(self, reason: str, remedy: str) -> UserError:
        return UserError(
            f"{self.name} is not complete in root={self.root}: {self.folder} lacks {', '.join(self.missing())}"
            f" (raw or as .gz){reason}. Set the argument root, or {ROOT_VARIABLE} in the environment, to the"
            f" folder that holds {self.name}/raw, or {remedy}."
        )


def _dimensions(sizes: tuple[int | None, ...] | list[int]) -> str:
    return " x ".join("n" if size is None else str(size) for size in sizes)


def _broken(path: Path, expected: str, found: str) -> UserError:
    return UserError(
        f"{path} is broken: expected {expected}, found {found}; replace it, or delete it to download it again."
    )
