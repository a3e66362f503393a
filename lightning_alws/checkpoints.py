"""Checkpoint files: written whole or not at all, and compared with what the command line asks for before use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lightning_alws.errors import UserError, condense
from lightning_alws.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there in one step: the one before stays until then.

    Lightning's own writes into the file itself, so that a disk that fills up, or a kill, costs both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write it, or raise a UserError that names the file and leaves what was there."""
        try:
            with atomic_write(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter where the disk is full
            reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"the checkpoint {path} cannot be written ({reason}); free some space, or see that its folder can be "
                "written to, and continue with --ckpt_path last."
            ) from error


def compare_with_checkpoint(path: Path, model: dict[str, Any], resuming: bool) -> None:
    """Raise a UserError if a checkpoint is unreadable, or of another model than the command line asks for.

    Args:
        path: the checkpoint file.
        model: ``class_path`` and ``init_args`` of the model, as parsed.
        resuming: compare the hyperparameters too; on resuming, the optimiser's state would silently override them.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(
            f"the checkpoint {path} cannot be read ({condense(str(error))}); use an earlier one."
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise UserError(f"ckpt_path is {path}, which holds no checkpoint of a run; give last.ckpt or best.ckpt of one.")
    stored = dict(checkpoint.get("hyper_parameters", {}))
    stored_class = stored.pop("_class_path", None)
    if stored_class is not None and stored_class != model["class_path"]:
        raise UserError(
            f"the checkpoint {path} is of the model {stored_class}, but --model is {model['class_path']}; "
            "use the config the run was made with (config.yaml in its folder)."
        )
    if not resuming:
        return
    for name, value in flatten(model["init_args"]).items():
        before = flatten(stored).get(name, value)
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
