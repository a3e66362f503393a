"""Files of images in a folder, a tar or a zip, read where they lie: nothing is ever unpacked to the disk."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image, ImageOps, UnidentifiedImageError

from datamodules.idx import ROOT_VARIABLE, default_root
from lightning_alws.errors import UserError, printable

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
OTHER_SUFFIXES = (  # of pictures too, but not read: they are counted, so that nobody misses them unawares
    *(".apng", ".avif", ".bpg", ".dds", ".eps", ".exr", ".gif", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jfif"),
    *(".jp2", ".jpe", ".jxl", ".pbm", ".pcx", ".pnm", ".psd", ".svg", ".tga", ".xcf"),
    *(".arw", ".cr2", ".cr3", ".dcm", ".dng", ".iml", ".nef", ".orf", ".raf", ".rw2"),  # of cameras and scanners
)
LARGEST_FILE = 2**28  # bytes: what claims to be larger is no picture, and would fill the memory
NAMED = 5  # of the files left out that a message names


def left_out(name: str, reason: object) -> str:
    """A file that is not used and why, fit to be printed; the entry of ``skipped_files``."""
    return printable(f"{name} ({reason})")


def warn(message: str) -> None:
    """Say something of the files, once for all processes, fit to be printed."""
    pl.utilities.rank_zero_warn(printable(message))


def inform(message: str) -> None:
    """As :func:`warn`, what is no cause for concern."""
    pl.utilities.rank_zero_info(printable(message))


def refusal(message: str) -> UserError:
    """The error of a message with names of files, all of it fit to be printed on one line."""
    return UserError(printable(message))


def some_of(names: Sequence[str]) -> str:
    """The first of the names, fit to be printed."""
    return printable(", ".join(names[:NAMED])) + (", …" if len(names) > NAMED else "")


class Unreadable(Exception):
    """One file that cannot be used, and why; the others may well be."""


class ImageFiles(ABC):
    """The image files of one source, by name.

    Attributes:
        source: where they lie.
        names: their names below the source, with slashes; those of a folder or zip sorted, those of a tar in its order.
        other_formats: how many pictures of formats that are not read lie there too, by the ending of their names.
    """

    def __init__(self, source: Path, suffixes: tuple[str, ...]) -> None:
        self.source, self.suffixes = source, suffixes
        self.names: list[str] = []
        self.other_formats: dict[str, int] = {}

    def _takes(self, name: str) -> bool:
        """Whether a file is one of the images; one of another format is counted."""
        if is_image(name, self.suffixes):
            return True
        if is_image(name, OTHER_SUFFIXES):
            ending = PurePosixPath(name).suffix.lower()
            self.other_formats[ending] = self.other_formats.get(ending, 0) + 1
        return False

    def other_formats_named(self) -> str:
        """Their numbers and endings, the most frequent first; empty where there are none."""
        counts = sorted(self.other_formats.items(), key=lambda one: (-one[1], one[0]))
        return ", ".join(f"{count} {ending}" for ending, count in counts)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The content of a file; fastest in the order of ``names``. Raises :class:`Unreadable`."""

    @abstractmethod
    def _marks(self) -> Iterator[str]:
        """What changes when a file does."""

    def fingerprint(self) -> str:
        """64 hexadecimal digits that change when a name, a size or a date does."""
        digest = hashlib.sha256()
        for mark in self._marks():
            digest.update(mark.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()


class _Folder(ImageFiles):
    def __init__(self, source: Path, suffixes: tuple[str, ...]) -> None:
        super().__init__(source, suffixes)
        self._sizes: dict[str, tuple[int, int]] = {}
        visited: set[str] = set()
        # Folders of classes are often symbolic links, which may lead in circles.
        for folder, below, files in os.walk(source, followlinks=True, onerror=self._refuse):
            if (real := os.path.realpath(folder)) in visited:
                below.clear()
                continue
            visited.add(real)
            below[:] = [name for name in below if not name.startswith(".")]
            for file in files:
                if not self._takes(file):
                    continue
                name = (Path(folder) / file).relative_to(source).as_posix()
                try:
                    status = os.stat(os.path.join(folder, file))
                except OSError:
                    self._sizes[name] = (-1, 0)  # a link to nowhere: read() says so
                    continue
                if stat.S_ISREG(status.st_mode):
                    self._sizes[name] = (status.st_size, status.st_mtime_ns)
        self.names = sorted(self._sizes)

    @staticmethod
    def _refuse(error: OSError) -> None:
        raise refusal(f"the folder {error.filename} cannot be read ({error.strerror}); mend its permissions.")

    def read(self, index: int) -> bytes:
        name = self.names[index]
        if self._sizes[name][0] > LARGEST_FILE:
            raise Unreadable(f"more than {LARGEST_FILE >> 20} MB")
        try:
            return (self.source / name).read_bytes()
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error

    def _marks(self) -> Iterator[str]:
        for name in self.names:
            yield f"{name} {self._sizes[name]}"


class _Tar(ImageFiles):
    def __init__(self, source: Path, suffixes: tuple[str, ...], argument: str) -> None:
        super().__init__(source, suffixes)
        try:
            self._archive = tarfile.open(source)  # noqa: SIM115 (read from until the end)
            members = self._archive.getmembers()
            # tarfile takes a damaged header for the end, and would drop all files behind it without a word.
            file: Any = self._archive.fileobj
            file.seek(self._archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no readable header behind {len(members)} members")
            file.seek(0, os.SEEK_END)
            if members and file.tell() < members[-1].offset_data + members[-1].size:
                raise tarfile.ReadError(f"it ends within {members[-1].name}")
        except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), "").rstrip(":")  # then come all compressions it may have
            raise refusal(
                f"{argument} is {source}, which is no readable tar, zip or image file ({reason}); give a folder or an "
                "archive of images, or fetch it anew."
            ) from error
        # Links are left out: their targets are members too, or lie outside.
        self._members = [member for member in members if member.isreg() and self._takes(member.name)]
        self.names = [member.name for member in self._members]
        self._status = os.stat(source)

    def read(self, index: int) -> bytes:
        member = self._members[index]
        if member.size > LARGEST_FILE:
            raise Unreadable(f"more than {LARGEST_FILE >> 20} MB")
        try:
            file = self._archive.extractfile(member)
            assert file is not None, "a regular file"
            return file.read()
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise Unreadable(str(error)) from error

    def _marks(self) -> Iterator[str]:
        yield f"{self._status.st_size} {self._status.st_mtime_ns}"
        for member in self._members:
            yield f"{member.name} {member.size} {member.offset}"


class _Zip(ImageFiles):
    def __init__(self, source: Path, suffixes: tuple[str, ...], argument: str) -> None:
        super().__init__(source, suffixes)
        try:
            self._archive = zipfile.ZipFile(source)
            members = self._archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise refusal(
                f"{argument} is {source}, which is no readable zip ({error}); give a folder or an archive of images, "
                "or fetch it anew."
            ) from error
        members = [member for member in members if not member.is_dir() and self._takes(member.filename)]
        self._members = sorted(members, key=lambda member: member.filename)
        self.names = [member.filename for member in self._members]

    def read(self, index: int) -> bytes:
        member = self._members[index]
        if member.file_size > LARGEST_FILE:
            raise Unreadable(f"more than {LARGEST_FILE >> 20} MB")
        try:
            return self._archive.read(member)  # checks the file's CRC
        except (zipfile.BadZipFile, EOFError, zlib.error, OSError, RuntimeError, NotImplementedError) as error:
            raise Unreadable(str(error)) from error

    def _marks(self) -> Iterator[str]:
        for member in self._members:
            yield f"{member.filename} {member.file_size} {member.CRC}"


class _Single(ImageFiles):
    def __init__(self, source: Path, suffixes: tuple[str, ...]) -> None:
        super().__init__(source, suffixes)
        self.names = [source.name]

    def read(self, index: int) -> bytes:
        try:
            return self.source.read_bytes()
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from error

    def _marks(self) -> Iterator[str]:
        status = os.stat(self.source)
        yield f"{self.source.name} {status.st_size} {status.st_mtime_ns}"


def find_source(given: str, argument: str) -> Path:
    """The folder or file of a setting; a relative one that is not there is looked for in $ALWS_DATA.

    Raises:
        UserError: it is empty, or there is no such file or folder.
    """
    if not given.strip():
        raise UserError(f"{argument} is {given!r}, which names nothing; give a folder, an archive or an image file.")
    path = Path(given).expanduser()
    below = Path(default_root()).expanduser() / path
    # os.path.exists, unlike Path.exists, takes a folder that may not be entered for an empty one
    if not os.path.exists(path) and not os.path.exists(below):
        raise refusal(
            f"{argument} is {given}, but there is no such file or folder, nor in {ROOT_VARIABLE}; check the path."
        )
    return path if os.path.exists(path) else below


def open_images(source: Path, argument: str, suffixes: tuple[str, ...] = SUFFIXES) -> ImageFiles:
    """The image files in a folder (searched throughout), a tar or a zip, or one image file.

    Names inside an archive are only ever names: no file is written, whatever path a name pretends to. Hidden files,
    links inside a tar and files that do not end like images are left out; pictures of formats that are not read, such
    as GIF and HEIC, are too, with a warning that counts them by their endings.

    Args:
        source: the folder or file.
        argument: the setting that it comes from, for messages.
        suffixes: endings of image files, in lower case.

    Raises:
        UserError: there is no such file or folder, an archive is damaged, or there is no image in it.
    """
    files: ImageFiles
    if source.is_dir():
        files = _Folder(source, suffixes)
    elif os.path.exists(source) and not source.is_file():
        raise refusal(f"{argument} is {source}, which is neither a folder nor a file; give one of them.")
    elif not source.is_file():
        raise refusal(f"{argument} is {source}, but there is no such file or folder; check the path.")
    elif is_image(source.name, suffixes):
        files = _Single(source, suffixes)
    elif is_image(source.name, OTHER_SUFFIXES):
        raise refusal(f"{argument} is {source}, of a format that is not read; save it as PNG or JPEG.")
    else:
        files = (_Zip if zipfile.is_zipfile(source) else _Tar)(source, suffixes, argument)
    others = files.other_formats_named()
    if not files.names:
        beside = f" that are read (but {others})" if others else ""
        raise refusal(
            f"{argument} is {source}, but it holds no images{beside}; give a folder or an archive of files that end in "
            f"{', '.join(suffixes)}."
        )
    if others:
        warn(
            f"left out {sum(files.other_formats.values())} pictures in {source} of formats that are not read: {others}"
            "; save them as PNG or JPEG to use them."
        )
    return files


def is_image(name: str, suffixes: tuple[str, ...] = SUFFIXES) -> bool:
    """Whether a file's name ends like an image's and is not hidden (as the copies are that macOS leaves)."""
    file = PurePosixPath(name)
    return file.suffix.lower() in suffixes and not file.name.startswith(".") and "__MACOSX" not in file.parts


def decode(content: bytes, channels: int, size: int | None = None, crop: int | None = None) -> np.ndarray:
    """A square image as uint8 (channels, size, size), or whole in its own size.

    Turned upright as its EXIF data say; transparent pixels on black; grey values of more than 8 bits over the largest
    one, and colours made grey by their luminance (ITU-R BT.601).

    Args:
        content: of the file.
        channels: 1 for grey, 3 for red, green and blue.
        size: height and width, reached by bilinear interpolation with antialiasing; None for the whole image as it is.
        crop: height and width of the centre that is resized; by default the largest square.

    Raises:
        Unreadable: no image that Pillow can read to its end, or one smaller than ``crop``.
    """
    try:
        with Image.open(io.BytesIO(content)) as file:
            file.load()
            image: Image.Image = ImageOps.exif_transpose(file) or file
            pixels = _square(in_mode(image, "L" if channels == 1 else "RGB"), size, crop)
            array = np.asarray(pixels, dtype=np.uint8)
    except Unreadable:
        raise
    except UnidentifiedImageError as error:  # whose message names an object in memory
        raise Unreadable("no image") from error
    # Pillow's decoders raise whatever a broken file makes them stumble over, struct.error and IndexError among them.
    except Exception as error:
        raise Unreadable(str(error) or type(error).__name__) from error
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image as "L" or "RGB", transparent pixels on black; raises :class:`Unreadable` for values not finite."""
    if image.mode[0] in "IF":  # Pillow's own conversion would cut values off at 255
        values = finite(np.asarray(image, dtype=np.float64))
        return Image.fromarray((values * (255 / max(values.max(), 1e-300))).clip(0, 255).astype(np.uint8)).convert(mode)
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image if image.mode == mode else image.convert(mode)


def finite(values: np.ndarray) -> np.ndarray:
    """The values; raises :class:`Unreadable` if one of them is no finite number."""
    if not np.isfinite(values).all():
        raise Unreadable("pixels that are not finite numbers")
    return values


def _square(image: Image.Image, size: int | None, crop: int | None) -> Image.Image:
    if size is None:
        return image
    width, height = image.size
    side = min(width, height) if crop is None else crop
    if side > min(width, height):
        raise Unreadable(f"{width} x {height} pixels, less than the crop of {side}")
    if (width, height) != (side, side):
        left, top = round((width - side) / 2), round((height - side) / 2)
        image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.BILINEAR)
