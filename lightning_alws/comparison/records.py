"""What a run folder says about its run: ``results.json`` and ``config.yaml``, read and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from callbacks.results import FILE as RESULTS
from lightning_alws.errors import UserError, condense

CONFIG = "config.yaml"
PARTS = {"status": str, "model": str, "data": str, "seed": int, "training": dict, "metrics": dict, "provenance": dict}


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        folder: the run folder.
        results: the content of its ``results.json``.
        config: the content of its ``config.yaml``; None where there is none, as after a test from elsewhere.
    """

    folder: Path
    results: dict[str, Any]
    config: dict[str, Any] | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def seed(self) -> int:
        """The seed of ``seed_everything``."""
        return self.results["seed"]

    @property
    def metrics(self) -> dict[str, float]:
        """Every final figure; NaN and infinities, which JSON has as their names, are numbers again."""
        return {name: float(value) for name, value in self.results["metrics"].items() if value is not None}

    @property
    def provenance(self) -> dict[str, Any]:
        """How the figures were made."""
        return self.results["provenance"]

    @property
    def tested(self) -> bool:
        """Whether the run came to its end, the test included."""
        return self.results["status"] == "tested"


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The run folders among the given ones: each itself, or those in it; in the given order and each once.

    Raises UserError for a path that is no folder, or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_file():
            raise UserError(f"{path} is a file; give the run folder that it lies in.")
        if not path.is_dir():
            raise UserError(f"there is no folder {path}; give run folders, or a folder that holds some.")
        if (path / RESULTS).exists():
            inside = [path]
        else:
            inside = sorted(folder for folder in path.iterdir() if (folder / RESULTS).exists())
        if not inside:
            raise UserError(
                f"the folder {path} holds no {RESULTS}, nor does any folder in it; give folders that alws fit made."
            )
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def read_record(folder: Path) -> Record:
    """The record of a run; UserError if one of its two files is broken or of another format."""
    results = read_results(folder / RESULTS)
    config = folder / CONFIG
    return Record(folder, results, read_config(config) if config.exists() else None)


def read_results(path: Path) -> dict[str, Any]:
    """The content of a ``results.json``, with every part that a comparison needs."""
    advice = "test that run again, or leave it out"
    try:
        results = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({condense(str(error))}); {advice}.") from error
    missing = [part for part, kind in PARTS.items() if not isinstance(as_dict(results).get(part), kind)]
    if not missing:
        missing = [f"training.{part}" for part in ("steps", "seconds") if part not in results["training"]]
    if missing:
        raise UserError(
            f"{path} is no results file of this version of alws (it lacks {', '.join(missing[:3])}); {advice}."
        )
    try:
        Record(path.parent, results, None).metrics  # noqa: B018 (each must be a number)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds a figure that is no number ({error}); {advice}.") from error
    return results


def read_config(path: Path) -> dict[str, Any]:
    """The content of a run's ``config.yaml``; UserError if it holds no settings."""
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({condense(str(error))}); restore it, or leave that run out."
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no settings; restore it, or leave that run out.")
    return config


def as_dict(value: Any) -> dict[str, Any]:
    """The value if it is a dictionary, else an empty one."""
    return value if isinstance(value, dict) else {}


def why_left_out(record: Record) -> str:
    """Why a run that was not tested is no part of a comparison, in a few words."""
    status, error = record.results["status"], record.results.get("error")
    said = {
        "running": "running, or cut off",
        "fitted": "not tested yet: alws test",
    }.get(status, status)
    return f"{said} ({error})" if error else said
