"""What a run is begun in and goes on from: its settings checked, its folder never overwritten, its checkpoint found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from callbacks.checkpoint import FOLDER as CHECKPOINTS
from callbacks.results import FILE as RESULTS
from lightning_alws.checkpoints import FROM_DATA, compare_with_checkpoint, flatten, is_whole, last_whole
from lightning_alws.errors import UserError

CONFIG = "config.yaml"
WHAT_IS_LEARNT = ("data", "seed_everything")
# Settings of the data that change no batch.
WHERE_AND_HOW = {
    f"data.{name}"
    for name in ("root", "path", "source", "download", "verify_checksum", "device_megabytes", "eval_batch_size")
}
BEGIN_ANEW = "if no process is at work on it, begin it again with --begin_anew true"


def default_name(config: Any) -> str:
    """That of the first config and of the data."""
    files = [Path(str(file)).stem for file in config.get("config") or []]
    return f"{files[0] if files else 'run'}-{config.data.class_path.rsplit('.', 1)[-1]}"


def check_settings(config: Any, subcommand: str) -> None:
    """Raise a UserError for what only shows, or worse does not show, once the run has begun.

    Args:
        config: of the subcommand, parsed, with a name.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    seed = config.seed_everything
    if not isinstance(seed, bool) and seed is not None and not 0 <= seed < 2**32:
        raise UserError(f"seed_everything is {seed}; give a number from 0 to {2**32 - 1}.")
    for attribute in FROM_DATA:
        if config.model.init_args.get(attribute) is not None:
            raise UserError(f"model.{attribute} is given, but it comes from the data module; leave it out.")
    clip = config.trainer.gradient_clip_val
    if clip is not None and clip < 0:
        raise UserError(f"trainer.gradient_clip_val is {clip}; give a positive number, or null for no clipping.")
    for name in ("accumulate_grad_batches", "val_check_interval", "check_val_every_n_epoch"):
        if config.trainer[name] is not None and not _is_positive(config.trainer[name]):
            raise UserError(f"trainer.{name} is {config.trainer[name]}; give a positive number.")
    if subcommand == "fit" and not config.trainer.fast_dev_run:
        for name in ("max_steps", "max_epochs", "limit_train_batches"):
            if config.trainer[name] == 0:
                raise UserError(f"trainer.{name} is 0, so that nothing would be trained; give more.")
    if not Path(config.name).parts:
        raise UserError(f"name is {config.name}, which is the folder of runs itself; give the run a folder of its own.")
    if ".." in Path(config.name).parts or Path(config.name).is_absolute():
        raise UserError(f"name is {config.name}, which leads out of the folder of runs; set --runs instead.")


def _is_positive(value: Any) -> bool:
    return not isinstance(value, int | float) or value > 0  # an interval may be a time


def checkpoint_to_load(config: Any, subcommand: str) -> Path | None:
    """The file that ``ckpt_path`` means, None for a run that begins; no run is overwritten.

    Args:
        config: of the subcommand, parsed, with a name.
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        UserError: there is none, or the folder holds another run.
    """
    folder = Path(config.runs) / config.name
    fitting, trying = subcommand == "fit", bool(config.trainer.fast_dev_run)
    anew = fitting and config.begin_anew
    if config.ckpt_path is None or (anew and str(config.ckpt_path) == "last" and not has_checkpoint(folder)):
        if fitting and not trying:
            refuse_to_overwrite(folder, anew)
        if not fitting and not trying:
            raise UserError(
                f"alws {subcommand} needs a trained model, but ckpt_path is not given; add --ckpt_path best, last, or "
                "a file."
            )
        return None
    if "://" in str(config.ckpt_path):
        raise UserError(
            f"ckpt_path is {config.ckpt_path}; a checkpoint is loaded from a local file only, download it first."
        )
    path = Path(config.ckpt_path)
    if str(config.ckpt_path) == "last":
        if fitting and (folder / RESULTS).exists() and not has_checkpoint(folder):
            raise UserError(
                f"ckpt_path is last, but the run in {folder} has saved no checkpoint yet (its {RESULTS} says "
                f"{read_status(folder / RESULTS)}); {BEGIN_ANEW}."
            )
        path = last_whole(folder / CHECKPOINTS)
    elif str(config.ckpt_path) == "best":
        path = folder / CHECKPOINTS / "best.ckpt"
    if not str(config.ckpt_path) or path.is_dir():
        what = "which is a folder" if str(config.ckpt_path) else "which names nothing"
        raise UserError(f"ckpt_path is {str(config.ckpt_path)!r}, {what}; give best, last, or a checkpoint file.")
    if not path.is_file():
        raise UserError(
            f"ckpt_path is {config.ckpt_path}, but there is no file {path}; give a checkpoint, or another --name."
        )
    return path


def check_checkpoint(path: Path, config: Any, subcommand: str, resolved: dict[str, Any]) -> None:
    """Raise a UserError if a checkpoint does not fit the command line, or its figures would overwrite another run's.

    Args:
        path: the checkpoint.
        config: of the subcommand, parsed, with a name.
        subcommand: as above.
        resolved: the same configuration as ``config.yaml`` would hold it.
    """
    folder = Path(config.runs) / config.name
    compare_with_checkpoint(path, resolved["model"], resuming=subcommand == "fit")
    # Validation and prediction leave the figures in a run folder as they are; fit and test write them.
    of_this_run = path.resolve().parent.parent == folder.resolve()
    if subcommand in ("fit", "test") and not of_this_run and not config.trainer.fast_dev_run:
        refuse_to_overwrite(folder)
    if subcommand == "fit" and of_this_run and not config.trainer.fast_dev_run:
        refuse_to_go_back(path, folder)
        refuse_other_data(folder, resolved)


def refuse_to_go_back(path: Path, folder: Path) -> None:
    """Raise a UserError if a run would be continued from an earlier step than its last one, which it would lose.

    Args:
        path: the checkpoint to go on from, in the run folder.
        folder: of the run.
    """
    last = folder / CHECKPOINTS / "last.ckpt"
    if path.resolve() == last.resolve() or not is_whole(last):
        return
    begun, reached = (
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)["global_step"] for file in (path, last)
    )
    if begun < reached:
        raise UserError(
            f"ckpt_path is {path}, of step {begun}, but the run in {folder} has reached step {reached}, which would be "
            "overwritten; go on with --ckpt_path last, or give this checkpoint and another --name."
        )


def refuse_other_data(folder: Path, resolved: dict[str, Any]) -> None:
    """Raise a UserError if a run would be continued on other data or from another seed than it was begun with.

    Where the data lie may change, and how they are held; a setting that its config lacks came with a later version.

    Args:
        folder: of the run.
        resolved: the configuration that is asked for, as ``config.yaml`` would hold it.
    """
    try:
        before = yaml.safe_load((folder / CONFIG).read_text())
        begun = flatten({name: before[name] for name in WHAT_IS_LEARNT})
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return  # it is gone or damaged, and nobody knows
    asked = flatten({name: resolved[name] for name in WHAT_IS_LEARNT})
    for name, value in asked.items():
        if name not in WHERE_AND_HOW and begun.get(name, value) != value:
            raise UserError(
                f"{name} is {value}, but the run in {folder} was begun with {begun[name]}; a run is continued as it "
                "was begun: leave the setting as it was, or start a new run under another --name."
            )


def has_checkpoint(folder: Path) -> bool:
    """Whether a run folder holds one, be it damaged; a folder of half-written files is none."""
    return any((folder / CHECKPOINTS).glob("*.ckpt"))


def refuse_to_overwrite(folder: Path, begin_anew: bool = False) -> None:
    """Raise a UserError if a run lives in the folder; one that ended before its first checkpoint is none.

    Args:
        folder: of the run.
        begin_anew: the user says that a run without a checkpoint, of which the record says that it is running, was
            killed; nobody else can know.
    """
    if has_checkpoint(folder):
        raise UserError(
            f"the run folder {folder} already holds {CHECKPOINTS}; continue that run with --ckpt_path last, or give "
            "another --name."
        )
    if not (folder / RESULTS).exists():
        return
    status = read_status(folder / RESULTS)
    if status == "running" and not begin_anew:
        raise UserError(
            f"the run folder {folder} holds a run without any checkpoint, which is running or was killed; "
            f"{BEGIN_ANEW}, or give another --name."
        )
    if status not in ("running", "failed", "interrupted"):
        raise UserError(
            f"the run folder {folder} already holds {RESULTS}, but no checkpoint to continue from; give another "
            "--name, or move the folder away."
        )


def read_status(results: Path) -> str | None:
    """The status in a ``results.json``; None where it has none that can be read."""
    try:
        return json.loads(results.read_text())["status"]
    except (ValueError, KeyError, TypeError):
        return None
