"""One table of methods, as text for a terminal, as Markdown and as CSV, with the notes that it needs to be read."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lightning_alws.comparison.checks import LIKELIHOODS, estimator, is_reliable
from lightning_alws.comparison.groups import Method, Spread
from lightning_alws.comparison.records import Record, as_dict
from lightning_alws.comparison.text import aligned, count, numbers, show
from lightning_alws.errors import UserError

Better = Literal["max", "min"] | None
# The figures that are shown where there are any, by their names in results.json.
METRICS: dict[str, str] = {
    "test/log_likelihood": "log-likelihood",
    "test/log_likelihood_encoder": "with encoder",
    "test/negative_elbo_per_dim": "−ELBO per dim.",
    "test/fid_means": "FID means",
    "test/fid_samples": "FID samples",
    "test/kid_means": "KID means",
    "test/kid_samples": "KID samples",
}
REFERENCES = ("test/fid_floor", "test/kid_floor", "test/fid_pixels", "test/kid_pixels")
COSTS = ("steps", "training s", "parameters", "generative", "peak MB")
DAGGER = "†"


def better(metric: str) -> Better:
    """Whether the greatest or the least of a figure is the best; None where its name does not tell."""
    name = metric.removeprefix("test/")
    if "negative" in name or name.startswith(("fid", "kid")) or name.endswith("error"):
        return "min"
    return "max" if "log_likelihood" in name or "elbo" in name else None


def choose_metrics(records: Sequence[Record], names: Sequence[str] | None) -> list[str]:
    """The figures to compare: those named (``test/`` may be left out), or those of the runs that are usual.

    Where the runs have none of the usual ones, all of the test's. Raises UserError for a figure that no run has.
    """
    there = dict.fromkeys(metric for record in records for metric in record.metrics if metric.startswith("test/"))
    if names is not None:
        chosen = [name if name.startswith("test/") else f"test/{name}" for name in names]
        for metric in chosen:
            if metric not in there:
                raise UserError(f"no run has the figure {metric} that --metrics names; there are {', '.join(there)}.")
        return list(dict.fromkeys(chosen))
    return [metric for metric in METRICS if metric in there] or list(there)


@dataclass
class Table:
    """What is compared.

    Attributes:
        methods: one a row.
        metrics: names in ``results.json``, one a column.
        left_out: runs that are no part of it, each with the reason.
    """

    methods: Sequence[Method]
    metrics: Sequence[str]
    left_out: Sequence[str] = field(default_factory=list)

    def spread(self, method: Method, metric: str) -> Spread | None:
        """A figure over the seeds of a method."""
        return Spread.of(method.values(metric))

    def is_doubtful(self, method: Method, metric: str) -> bool:
        """Whether a log-likelihood is unreliable in some run of the method."""
        return metric in LIKELIHOODS and not all(
            is_reliable(record, metric) for record in method.records if metric in record.metrics
        )

    def best(self, metric: str) -> Method | None:
        """The method with the best mean, unreliable ones apart; None of a single method."""
        means = [
            (spread.mean, method)
            for method in self.methods
            if (spread := self.spread(method, metric)) and math.isfinite(spread.mean)
            if not self.is_doubtful(method, metric)
        ]
        direction = better(metric)
        if direction is None or len(self.methods) < 2 or not means:
            return None
        return (max if direction == "max" else min)(means, key=lambda pair: pair[0])[1]

    def terminal(self, width: int = 10_000) -> str:
        """Aligned text; costs and figures one above the other where they are wider than ``width`` together."""
        costs, figures = self._cost_columns(), self._figure_columns(" *", "")
        head = [["method", *(method.label for method in self.methods)], ["seeds", *self._counts()]]
        whole = aligned([*head, *costs, *figures])
        if max(map(len, whole.splitlines())) > width:
            whole = aligned([head[0], *figures]) + "\n\n" + aligned([*head, *costs])
        return "\n".join([whole, "", *self.notes()])

    def markdown(self) -> str:
        """A Markdown table, the best figures in bold, and the notes as a list."""
        head = [["method", *(method.label for method in self.methods)], ["seeds", *self._counts()]]
        columns = [*head, *self._cost_columns(), *self._figure_columns("**", "**")]
        rows = [[column[row].replace("|", "\\|") for column in columns] for row in range(len(self.methods) + 1)]
        rows.insert(1, ["---", *["---:"] * (len(columns) - 1)])
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([*lines, "", *(f"* {note}" for note in self.notes(best="bold"))]) + "\n"

    def csv(self) -> str:
        """Numbers in full, a row a method; the references of FID and KID in columns of their own."""
        metrics = [*self.metrics, *self._references()]
        names = ["steps", "seconds", "parameters", "generative_parameters", "peak_memory_mb", *metrics]
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        # A deviation is empty for one seed; unreliable counts the runs whose log-likelihood is marked so.
        writer.writerow(
            ["method", "seeds", *(f"{name}_{part}" for name in names for part in ("mean", "deviation")), "unreliable"]
        )
        for method in self.methods:
            spreads = [Spread.of(values) for values in _costs(method)]
            spreads += [self.spread(method, metric) for metric in metrics]
            cells = [part for spread in spreads for part in numbers(spread)]
            unreliable = sum(
                not is_reliable(record) for record in method.records if "test/log_likelihood" in record.metrics
            )
            seeds = " ".join(str(record.seed) for record in method.records)
            writer.writerow([method.label, seeds, *cells, unreliable])
        return file.getvalue()

    def notes(self, best: str = "*") -> list[str]:
        """What the table rests on, one sentence each."""
        records = [record for method in self.methods for record in method.records]
        notes = [f"data: {records[0].results['data']}; mean ± standard deviation over seeds; {best}: the best."]
        notes += self._reference_notes()
        if any(self.is_doubtful(method, metric) for method in self.methods for metric in self.metrics):
            notes.append(
                f"{DAGGER} unreliable in at least one run (too few effective samples, or bounds too far apart): too "
                "low by an unknown amount, and never marked the best."
            )
        if "test/log_likelihood" in self.metrics:
            notes += self._estimator_notes(records)
        for what, values in (("machines", _by(records, _machine)), ("versions", _by(records, _versions))):
            if len(values) > 1:
                notes.append(f"different {what}: " + "; ".join(f"{key} ({', '.join(n)})" for key, n in values.items()))
        return notes + [f"left out: {reason}." for reason in self.left_out]

    def _counts(self) -> list[str]:
        return [str(len(method.records)) for method in self.methods]

    def _cost_columns(self) -> list[list[str]]:
        columns = [[title] for title in COSTS]
        for method in self.methods:
            for column, values in zip(columns, _costs(method), strict=True):
                column.append(count(values) if column[0] != "training s" else show(Spread.of(values)))
        return [column for column in columns if any(column[1:])]

    def _figure_columns(self, before: str, after: str) -> list[list[str]]:
        """One column a figure; the best is set between ``before`` and ``after`` (or followed by a mark alone)."""
        columns = []
        for metric in self.metrics:
            column, best = [METRICS.get(metric, metric.removeprefix("test/"))], self.best(metric)
            for method in self.methods:
                text = show(self.spread(method, metric)) + (f" {DAGGER}" if self.is_doubtful(method, metric) else "")
                if best is not None and not after:  # a mark behind, for which the others leave room
                    text += before if method is best else " " * len(before)
                elif method is best:
                    text = f"{before}{text}{after}"
                column.append(text)
            columns.append(column)
        return columns

    def _references(self) -> list[str]:
        records = [record for method in self.methods for record in method.records]
        kinds = {metric.removeprefix("test/").split("_")[0] for metric in self.metrics}
        return [
            name
            for name in REFERENCES
            if name.removeprefix("test/").split("_")[0] in kinds and any(name in record.metrics for record in records)
        ]

    def _reference_notes(self) -> list[str]:
        there = self._references()
        notes = []
        for kind, said in (("floor", "training against test images"), ("pixels", "independent pixels")):
            parts = []
            for name in there:
                if name.endswith(kind):
                    values = [value for method in self.methods for value in method.values(name)]
                    parts.append(f"{name[5:8].upper()} {show(Spread(sum(values) / len(values), None, 1))}")
            if parts:
                notes.append(f"{said}: {', '.join(parts)}.")
        return notes

    def _estimator_notes(self, records: Sequence[Record]) -> list[str]:
        those = [record for record in records if "test/log_likelihood" in record.metrics]
        made = _by(those, lambda record: ", ".join(_phrases(estimator(record))))
        if len(made) == 1:
            return [f"log-likelihood by {next(iter(made))}."] if next(iter(made)) else []
        return [
            f"log-likelihood by {how or 'an unknown estimator'}: {', '.join(names)}." for how, names in made.items()
        ]


def _costs(method: Method) -> list[list[float]]:
    """Steps, seconds, parameters in all, of the generative part, peak memory: of the runs that state them."""
    training = [record.results["training"] for record in method.records]
    parameters = [as_dict(record.results.get("parameters")) for record in method.records]
    parts = [
        [one["steps"] for one in training],
        [one["seconds"] for one in training],
        [one.get("total") for one in parameters],
        [one.get("generative") for one in parameters],
        [record.results.get("peak_memory_mb") for record in method.records],
    ]
    return [[float(value) for value in part if isinstance(value, int | float)] for part in parts]


def _phrases(made: dict[str, object]) -> list[str]:
    plain = {name.split(".", 1)[1]: value for name, value in made.items()}
    method = [str(plain.pop("method"))] if "method" in plain else []
    return method + [f"{value} {name.replace('_', ' ')}" for name, value in plain.items()]


def _machine(record: Record) -> str:
    machine = as_dict(record.results.get("machine"))
    return f"{machine.get('device') or 'cpu'}, {machine.get('threads')} threads" if machine else "unknown"


def _versions(record: Record) -> str:
    versions = as_dict(record.results.get("versions"))
    return ", ".join(f"{name} {versions[name]}" for name in ("alws", "torch") if name in versions) or "unknown"


def _by(records: Sequence[Record], key: Callable[[Record], str]) -> dict[str, list[str]]:
    """Names of the runs by what a function says of them."""
    found: dict[str, list[str]] = {}
    for record in records:
        found.setdefault(key(record), []).append(record.name)
    return found
