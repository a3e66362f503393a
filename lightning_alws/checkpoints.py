"""Checkpoint files: written whole or not at all, verified, and compared with what the command line asks for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import IO, Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_warn

from lightning_alws.errors import UserError, condense
from lightning_alws.files import atomic_write, write_json

CHECKSUMS = "checksums.json"
MOST_CHECKSUMS = 20  # of each name: so many kills in a row would have to fall between two system calls
PREVIOUS = {"last.ckpt": "previous.ckpt"}  # what a file becomes when the next of its name is written
IN_ALL = {"state_dict", "pytorch-lightning_version", "global_step", "epoch"}  # what every checkpoint of a run holds
TO_GO_ON = {"optimizer_states", "lr_schedulers", "loops", "callbacks"}  # and what a training needs besides
# What a model takes from the data module.
FROM_DATA = ("image_shape", "likelihood", "event_shape", "input_current", "time_step")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there in one step: the one before stays until then.

    Lightning's own is staged in the system's temporary folder, so that a disk that fills up, or a kill between two
    file systems, costs both. ``last.ckpt`` becomes ``previous.ckpt`` before it is replaced, and ``checksums.json``
    beside them tells what was written, so that a file that was damaged later is known for what it is.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write it, or raise a UserError that names the file and leaves what was there."""
        path = Path(path)
        try:
            with atomic_write(path) as file:
                hashing = Hashing(file)
                torch.save(checkpoint, hashing)  # type: ignore[arg-type]
                note_checksum(path, hashing.digest.hexdigest())
                if path.name in PREVIOUS:
                    keep(path, path.with_name(PREVIOUS[path.name]))
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter where the disk is full
            reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"the checkpoint {path} cannot be written ({reason}); free some space, or see that its folder can be "
                "written to, and continue with --ckpt_path last."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read numbers, strings and containers of them, from a local file, whatever the caller asks for."""
        if "://" in str(path):
            raise UserError(f"ckpt_path is {path}; a checkpoint is loaded from a local file only, download it first.")
        return super().load_checkpoint(path, map_location, weights_only=True)


class Hashing:
    """A file to write to that computes the SHA-256 of what passes through."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def note_checksum(path: Path, new: str) -> None:
    """Add the checksum of what is about to become ``path`` to those in its folder.

    Earlier ones of that name stay for a while: whichever file a kill at this moment leaves, its checksum is there.
    """
    known = read_checksums(path.parent)
    known[path.name] = [*known.get(path.name, []), new][-MOST_CHECKSUMS:]
    write_json(path.parent / CHECKSUMS, known)


def read_checksums(folder: Path) -> dict[str, Any]:
    """Checksums by file name; none where there is no readable file of them."""
    try:
        return dict(json.loads((folder / CHECKSUMS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def known_checksums(path: Path) -> list[str]:
    """Those that a checkpoint may have; none where nobody noted them."""
    source = next((name for name, previous in PREVIOUS.items() if previous == path.name), path.name)
    return read_checksums(path.parent).get(source, [])


def keep(path: Path, previous: Path) -> None:
    """Let ``previous`` be the file at ``path``, which stays; nothing where there is none."""
    if not path.exists():
        return
    link = previous.with_name(f".{previous.name}-link")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without links
        shutil.copyfile(path, link)
    os.replace(link, previous)


def remove_remnants(folder: Path) -> None:
    """Delete what a killed process has left half-written; only the one process that writes there may call this."""
    for name in (*PREVIOUS, *PREVIOUS.values(), "best.ckpt", CHECKSUMS):
        for file in folder.glob(f".{name}-*"):
            file.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is as it was written; one whose checksum nobody noted must at least be readable."""
    if not path.is_file():
        return False
    known = known_checksums(path)
    if known:
        return checksum(path) in known
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return False
    return True


def last_whole(folder: Path) -> Path:
    """The newest whole checkpoint: ``last.ckpt``, the one before it, or else the best, with a warning if not the first.

    The best alone is there where a run was killed between its first two files.

    Raises:
        UserError: there is none.
    """
    last = folder / "last.ckpt"
    previous = folder / PREVIOUS[last.name]
    if is_whole(last):
        return last
    state = "is damaged" if last.exists() else "is missing"
    if is_whole(previous):
        rank_zero_warn(f"{last} {state}; the run goes on from the one before it, {previous}.")
        return previous
    best = folder / "best.ckpt"
    if is_whole(best):
        rank_zero_warn(f"{last} {state}, and there is none before it; the run goes on from {best}.")
        return best
    if last.exists():
        raise UserError(f"{last} is damaged and there is no whole {previous.name} beside it; start a new run.")
    raise UserError(f"ckpt_path is last, but there is no file {last}; give a checkpoint, or another --name.")


def compare_with_checkpoint(path: Path, model: dict[str, Any], resuming: bool) -> None:
    """Raise a UserError if a checkpoint is unreadable, or of another model than the command line asks for.

    Args:
        path: the checkpoint file.
        model: ``class_path`` and ``init_args`` of the model, as parsed.
        resuming: compare the hyperparameters too; on resuming, the optimiser's state would silently override them.
    """
    if known_checksums(path) and not is_whole(path):
        raise UserError(
            f"the checkpoint {path} is damaged: its checksum is not that of what was written; use an earlier one, such "
            "as previous.ckpt."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({condense(str(error))}); use an earlier one."
        ) from error
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= IN_ALL:
        raise UserError(f"ckpt_path is {path}, which holds no checkpoint of a run; give last.ckpt or best.ckpt of one.")
    lacking = sorted(TO_GO_ON - checkpoint.keys())
    if resuming and lacking:
        raise UserError(
            f"the checkpoint {path} lacks {' and '.join(lacking)}, without which a run cannot go on; give last.ckpt or "
            "best.ckpt as a run has written them."
        )
    stored = dict(checkpoint.get("hyper_parameters", {}))
    stored_class = stored.pop("_class_path", None)
    if stored_class is not None and stored_class != model["class_path"]:
        raise UserError(
            f"the checkpoint {path} is of the model {stored_class}, but --model is {model['class_path']}; "
            "use the config the run was made with (config.yaml in its folder)."
        )
    settings, old = flatten(model["init_args"]), flatten(stored)
    # Lightning stores what the data module would have given, taken or not.
    known = {*settings, *FROM_DATA}
    gone = [name for name in old if name not in known and not name.startswith("_") and "." not in name]
    if gone and settings:
        written = f", written by alws {checkpoint['alws_version']}," if "alws_version" in checkpoint else ""
        sentence = (
            f"the checkpoint {path}{written} was trained with model.{gone[0]} {old[gone[0]]}, a setting that "
            f"{model['class_path']} no longer has"
        )
        if resuming:
            raise UserError(f"{sentence}; go on with the version that wrote it, or start a new run.")
        rank_zero_warn(f"{sentence}; it is ignored.")
    if not resuming:
        return
    for name, value in settings.items():
        before = old.get(name, value)
        if value is not None and before != value:
            raise UserError(
                f"model.{name} is {value}, but the checkpoint {path} was trained with {before}; a run is continued as "
                "it was begun: leave the setting as it was, or start a new run under another --name."
            )


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, tuples as lists, ``init_args`` left out of the names as on the command line."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = prefix.rstrip(".") if name == "init_args" else prefix + name
        if isinstance(value, dict):
            flat.update(flatten(value, key + "." if key else ""))
        else:
            flat[key] = list(value) if isinstance(value, tuple) else value
    return flat
