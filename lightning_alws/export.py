"""``alws export --config FILE --ckpt_path best|last|FILE``: weights as safetensors, which hold no code."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save
from torch import Tensor

from lightning_alws.checkpoints import compare_with_checkpoint, last_whole
from lightning_alws.errors import UserError
from lightning_alws.files import atomic_write

CHECKPOINTS = "checkpoints"  # in a run folder
SUFFIX = ".safetensors"
GENERATIVE, AVERAGED = "generative.", "averaged.module."  # in the names of a module's weights
DESCRIPTION = (
    "Write the weights of a trained model as safetensors, a format that holds numbers and names alone: those of the "
    "generative model as it is evaluated (the averaged ones where there are such), or the whole module's."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see alws export --help.")


def parser() -> argparse.ArgumentParser:
    """The options of ``alws export``."""
    options = _Parser(prog="alws export", description=DESCRIPTION, allow_abbrev=False)
    options.add_argument("--config", required=True, metavar="FILE", help="of the run: RUNS/NAME/config.yaml")
    options.add_argument("--ckpt_path", required=True, metavar="best|last|FILE", help="the checkpoint")
    options.add_argument(
        "--part", choices=("generative", "module"), default="generative", help="what of; by default %(default)s"
    )
    options.add_argument("--out", type=Path, metavar="FILE", help="by default the checkpoint's name with .safetensors")
    return options


def export(arguments: Sequence[str], resolve: Callable[[list[str]], dict[str, Any]]) -> int:
    """The command; returns the exit status.

    Args:
        arguments: those after ``export``.
        resolve: the configuration that arguments of ``alws fit`` amount to.

    Raises UserError for a mistake.
    """
    given = parser().parse_args(arguments)
    config = resolve(["fit", "--config", given.config])
    path = find_checkpoint(given.ckpt_path, Path(given.config), config)
    out = (
        path.with_name(path.stem + ("_module" if given.part == "module" else "") + SUFFIX)
        if given.out is None
        else given.out
    )
    if out.suffix != SUFFIX or out.is_dir():
        raise UserError(f"--out is {out}; give the name of a file that ends in {SUFFIX}.")
    compare_with_checkpoint(path, config["model"], resuming=False)
    # weights_only: what is unpickled are numbers, strings and containers of them, never code.
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights, averaged = choose_weights(checkpoint["state_dict"], given.part, path)
    content = save(weights, describe(checkpoint, config, given.part, averaged))
    with atomic_write(out) as file:
        file.write(content)
    print(f"{len(weights)} tensors, {sum(part.numel() for part in weights.values())} numbers, are in {out}")
    return 0


def find_checkpoint(choice: str, config_file: Path, config: dict[str, Any]) -> Path:
    """The file that ``best``, ``last`` or a path stands for; a run folder that was moved is found by its config.

    Raises UserError where there is none, or a URL is given.
    """
    if "://" in choice:
        raise UserError(f"--ckpt_path is {choice}; a checkpoint is loaded from a local file only, download it first.")
    if choice not in ("best", "last"):
        path = Path(choice)
    else:
        folder = config_file.parent / CHECKPOINTS
        if not folder.is_dir():
            if config.get("name") is None:
                raise UserError(
                    f"--ckpt_path is {choice}, but --config {config_file} is of no run; give RUNS/NAME/config.yaml, or "
                    "a checkpoint file."
                )
            folder = Path(config["runs"]) / config["name"] / CHECKPOINTS
        path = last_whole(folder) if choice == "last" else folder / "best.ckpt"
    if not path.is_file():
        raise UserError(
            f"--ckpt_path is {choice}, but there is no file {path}; give a checkpoint, or another --config."
        )
    return path


def choose_weights(state: dict[str, Any], part: str, path: Path) -> tuple[dict[str, Tensor], bool]:
    """Weights by name, each with memory of its own, and whether they are the averaged ones.

    Raises UserError where there are none, or some are no tensors.
    """
    prefix = "" if part == "module" else AVERAGED if any(name.startswith(AVERAGED) for name in state) else GENERATIVE
    chosen = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not chosen:
        raise UserError(f"the checkpoint {path} holds no weights of a generative model; use --part module.")
    for name, value in chosen.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{name} in the checkpoint {path} is no tensor, and safetensors hold nothing else.")
    # Tensors that share memory, or views, are refused by the format.
    weights = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in chosen.items()}
    return weights, prefix == AVERAGED


def describe(checkpoint: dict[str, Any], config: dict[str, Any], part: str, averaged: bool) -> dict[str, str]:
    """The file's metadata, strings all: enough to build the model again without the checkpoint."""
    hyperparameters = dict(checkpoint.get("hyper_parameters", {}))
    hyperparameters.pop("_instantiator", None)  # how Lightning would build it
    return {
        "format": "pt",
        "class_path": hyperparameters.pop("_class_path", None) or config["model"]["class_path"],
        "hyper_parameters": json.dumps(hyperparameters),
        "part": part,
        "averaged": str(averaged).lower(),
        "step": str(checkpoint["global_step"]),
        "alws_version": version("alws"),
    }
