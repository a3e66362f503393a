"""A plan: methods and seeds that are to be compared, and how far each of its runs has come.

runs: runs/comparisons/digits         # folder of its runs
seeds: [0, 1, 2]
data: Digits                          # of all methods, as --data
overrides: {model.latent_dim: 8}      # of all methods, as on the command line: --model.latent_dim 8
methods:
  - config: configs/images/al_f.yaml  # below the current folder, or the application's
  - config: configs/images/al_c.yaml
    label: AL-C                       # by default the config's name
    overrides: {model.learning.held_out: 300}
    seeds: [0]                        # by default the plan's
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from callbacks.checkpoint import FOLDER as CHECKPOINTS
from callbacks.results import FILE as RESULTS
from lightning_alws.comparison.groups import settings_that_count
from lightning_alws.comparison.records import CONFIG, read_config, read_results
from lightning_alws.errors import UserError, condense

APPLICATION = Path(__file__).parents[2]
KEYS = {"runs": str, "seeds": list, "data": str, "overrides": dict, "methods": list}
METHOD_KEYS = {"config": str, "label": str, "overrides": dict, "seeds": list}
SAID: dict[type, str] = {str: "text", list: "a list", dict: "settings by name"}
RESERVED = {"config", "data", "seed_everything", "name", "runs", "ckpt_path"}  # the plan's own to give
STEPS = "trainer.max_steps"

Resolve = Callable[[list[str]], dict[str, Any]]  # the configuration that a command line amounts to


@dataclass(frozen=True)
class PlannedRun:
    """One training of a plan.

    Attributes:
        label: of its method.
        folder: its run folder.
        arguments: of ``alws fit``, the seed, name and folder included.
    """

    label: str
    folder: Path
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """How far a run has come, and what there is to do.

    Attributes:
        name: "done", "missing", "cut off", "failed" (both of which can go on or begin anew) or "stuck".
        command: the arguments of ``alws`` that lead it to its end; none if it is done, or stuck.
        reason: why it is stuck, or what happened.
    """

    name: str
    command: tuple[str, ...] = ()
    reason: str = ""


def read_plan(path: Path) -> list[PlannedRun]:
    """The runs of a plan, method by method. Raises UserError for a mistake in the file, by its key."""
    try:
        plan = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"the plan {path} cannot be read ({error.strerror}); name a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the plan {path} is no YAML ({condense(str(error))}); mend it.") from error
    _check(plan, KEYS, ("runs", "seeds", "methods"), str(path))
    if not plan["methods"]:
        raise UserError(f"methods is empty in {path}; list at least one config.")
    common = [f"--data={plan['data']}"] if "data" in plan else []
    common += _options(plan.get("overrides", {}), str(path))
    planned: list[PlannedRun] = []
    for number, method in enumerate(plan["methods"], 1):
        where = f"method {number} of {path}"
        _check(method, METHOD_KEYS, ("config",), where)
        config, label = _find_config(method["config"], where), method.get("label", Path(method["config"]).stem)
        if not re.fullmatch(r"[\w+][\w+ .()-]*", label):
            raise UserError(f"label is {label} in {where}, but runs are named so; keep to letters, digits, - and _.")
        if any(label == other.label for other in planned):
            raise UserError(f"label is {label} in {where} and of a method before; give each another one.")
        options = [*common, *_options(method.get("overrides", {}), where)]
        for seed in _seeds(method.get("seeds", plan["seeds"]), where):
            name = f"{label}-seed{seed}"
            own = [f"--seed_everything={seed}", f"--runs={plan['runs']}", f"--name={name}"]
            arguments = ("fit", "--config", str(config), *options, *own)
            planned.append(PlannedRun(label, Path(plan["runs"]) / name, arguments))
    return planned


def _check(part: Any, kinds: Mapping[str, type], needed: Sequence[str], where: str) -> None:
    """Raise a UserError for an unknown or missing key, or a value of another type."""
    if not isinstance(part, dict):
        raise UserError(f"{where} holds no settings; give {', '.join(needed)}.")
    for key, value in part.items():
        if key not in kinds:
            raise UserError(f"there is no setting {key} in {where}; there are {', '.join(kinds)}.")
        if not isinstance(value, kinds[key]):
            said = SAID[kinds[key]]
            raise UserError(f"{key} is {value} in {where}; give {said}.")
    for key in needed:
        if key not in part:
            raise UserError(f"{key} is missing in {where}; give it.")


def _seeds(seeds: list[Any], where: str) -> list[int]:
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds is {seeds} in {where}; give different whole numbers from 0 on, such as [0, 1, 2].")
    return seeds


def _find_config(config: str, where: str) -> Path:
    for path in (Path(config), APPLICATION / config):
        if path.is_file():
            return path
    raise UserError(f"config is {config} in {where}, but there is no such file here or in the application; mend it.")


def _options(overrides: dict[str, Any], where: str) -> list[str]:
    """Settings by dotted names as arguments."""
    options = []
    for name, value in overrides.items():
        bare = str(name).removeprefix("--")
        if bare in RESERVED:
            raise UserError(f"overrides holds {bare} in {where}, which the plan itself gives; leave it out.")
        options.append(f"--{bare}={value if isinstance(value, str) else json.dumps(value)}")
    return options


def state_of(run: PlannedRun, planned: Mapping[str, Any]) -> State:
    """What is to be done for a run.

    A run that was made with other settings than the plan's is stuck: it is never overwritten; with fewer steps
    alone, it is cut off.

    Args:
        run: of the plan.
        planned: the configuration that its arguments amount to, as :func:`resolved` gives it.
    """
    checkpoint, results = run.folder / CHECKPOINTS / "last.ckpt", run.folder / RESULTS
    if not results.exists() and not (run.folder / CHECKPOINTS).exists():
        return State("missing", run.arguments)
    record = read_results(results) if results.exists() else {}
    status, error, steps = record.get("status"), record.get("error", ""), record.get("training", {}).get("steps", 0)
    error = error if status == "failed" else ""  # an interruption explains itself
    begun_anew = status in ("failed", "interrupted") and not (run.folder / CHECKPOINTS).exists()
    if begun_anew:  # as refuse_to_overwrite lets it
        return State("failed" if status == "failed" else "cut off", run.arguments, error)
    made = settings_that_count(read_config(run.folder / CONFIG)) if (run.folder / CONFIG).exists() else {}
    asked = settings_that_count(planned)
    # A setting that its config lacks came with a later version, whose default is taken to be what was.
    differing = [name for name, value in made.items() if value != asked.get(name)]
    more = differing == [STEPS] and steps < asked[STEPS]
    if differing and not more:
        name = differing[0]
        return State(
            "stuck",
            reason=f"{name} is {made.get(name)} in its config.yaml, but {asked.get(name)} in the plan; move the folder "
            f"{run.folder} away, or give the plan another folder of runs",
        )
    if status == "tested" and not more:
        return State("done")
    if checkpoint.exists():
        return State("failed" if status == "failed" else "cut off", (*run.arguments, "--ckpt_path=last"), error)
    return State(
        "stuck", reason=f"begun, but without a checkpoint to continue from; remove {run.folder} if no run writes to it"
    )


def states(runs: Sequence[PlannedRun], resolve: Resolve) -> list[State]:
    """The state of each run; every method's settings are parsed, so that a mistake is found before the first training.

    Raises UserError for settings that a method does not accept, with its label.
    """
    configs: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.label not in configs:
            try:
                configs[run.label] = resolve(list(run.arguments))
            except UserError as error:
                raise UserError(f"the plan's method {run.label} is refused: {error}") from error
    return [state_of(run, configs[run.label]) for run in runs]
