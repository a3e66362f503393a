"""Runs of one method, which differ in their seed alone, and the spread of a figure over them."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_alws.checkpoints import flatten
from lightning_alws.comparison.records import Record
from lightning_alws.errors import UserError

# What makes no other method of a run: its seed and place, what it shows, and how it is measured; the last is compared
# by the figures' own provenance.
APART = {"seed_everything", "name", "runs", "ckpt_path", "weights_only", "test_after_fit"}
APART_SECTIONS = (
    "sample_grid",
    "fid_kid",
    "log_likelihood",
    "diagnostics",
    "traces",
    "throughput",
    "compile",
    "predictions",
)
APART_OPTIONS = {
    "data.root", "data.download", "data.eval_batch_size", "trainer.accelerator", "trainer.enable_progress_bar",
    "trainer.enable_model_summary", "trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "trainer.logger",
    "trainer.default_root_dir",
}  # fmt: skip
SEED_SUFFIX = re.compile(r"[-_.](?:seed|s)?[-_]?\d+$")


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of a sample, n − 1) of ``count`` values; one value has no deviation."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """That of the values; None of none."""
        if not values:
            return None
        if not all(map(math.isfinite, values)):
            return cls(math.nan, None, len(values))
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Method:
    """The runs of one method.

    Attributes:
        label: what it is called.
        records: its runs, by seed.
    """

    label: str
    records: tuple[Record, ...]

    def values(self, metric: str) -> list[float]:
        """A figure in each run that has it."""
        return [record.metrics[metric] for record in self.records if metric in record.metrics]


def settings_that_count(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that tell methods apart, by their dotted names."""
    flat = flatten(dict(config))
    return {
        name: value
        for name, value in flat.items()
        if name not in APART | APART_OPTIONS and name.split(".")[0] not in APART_SECTIONS
    }


def group(records: Sequence[Record], labels: Mapping[Path, str] | None = None) -> list[Method]:
    """The methods in the order of their first runs.

    Runs are of one method if nothing but seed, name, place and measurement differ in their configs. Without a config,
    the model's class and the run's name decide.

    Args:
        records: the runs.
        labels: by run folder, what a plan calls a method; by default it is read off the runs' names.

    Raises UserError where a method has one seed twice: a copy would shrink the spread.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault((labels or {}).get(record.folder) or _identity(record), []).append(record)
    for members in groups.values():
        seeds: dict[int, Record] = {}
        for record in members:
            if other := seeds.get(record.seed):
                raise UserError(
                    f"the runs {other.folder} and {record.folder} are of one method with the same seed {record.seed}, "
                    "which would count twice; leave one of them out."
                )
            seeds[record.seed] = record
    ordered = [tuple(sorted(members, key=lambda record: record.seed)) for members in groups.values()]
    if labels is not None:
        return [Method(label, members) for label, members in zip(groups, ordered, strict=True)]
    return [Method(label, members) for label, members in zip(_distinct(ordered), ordered, strict=True)]


def _identity(record: Record) -> str:
    if record.config is None:
        return f"{record.results['model']} {_label(record)}"
    return json.dumps(settings_that_count(record.config), sort_keys=True, default=str)


def _label(record: Record) -> str:
    """The run's name without its seed and the data's name, which the default name ends in."""
    name = str(as_name.replace("/", "-")) if (as_name := _given_name(record)) else record.name
    label = SEED_SUFFIX.sub("", name) or name
    return label.removesuffix(f"-{record.results['data']}") or label


def _given_name(record: Record) -> str | None:
    """The name in the config, where the folder still has it; it tells more if it is a path such as ``vae/seed0``."""
    name = (record.config or {}).get("name")
    return name if isinstance(name, str) and Path(name).name == record.name else None


def _distinct(groups: Sequence[tuple[Record, ...]]) -> list[str]:
    """A label of each group; those that would be the same name what they differ in."""
    labels = []
    for members in groups:
        names = [_label(record) for record in members]
        # Characters, not parts of a path, are what names have in common.
        common = os.path.commonprefix(names).rstrip("-_. ")  # noqa: RUF071
        labels.append(common if len(common) >= 3 or len(set(names)) == 1 else names[0])
    repeated = {label for label in labels if labels.count(label) > 1}
    result = []
    for label, members in zip(labels, groups, strict=True):
        if label in repeated:
            namesakes = [other for name, other in zip(labels, groups, strict=True) if name == label]
            label = f"{label} ({_difference(members, namesakes) or members[0].name})"
        result.append(label)
    if len(set(result)) < len(result):  # the same difference, as where there are no configs
        result = [str(members[0].folder) for members in groups]
    return result


def _difference(members: tuple[Record, ...], namesakes: Sequence[tuple[Record, ...]]) -> str:
    """The first two settings in which a group differs from its namesakes; none if there are more."""
    if any(group[0].config is None for group in namesakes):
        return ""
    settings = [settings_that_count(group[0].config or {}) for group in namesakes]
    own = settings_that_count(members[0].config or {})
    names = [name for name in own if any(other.get(name) != own[name] for other in settings)]
    return ", ".join(f"{name} {own[name]}" for name in names) if len(names) <= 2 else ""
