"""A chart of a table's figures: one panel a figure, one row a method, a dot a seed, a bar of mean ± deviation.

Log-likelihoods share a panel. FID and KID of means have one apart from those of samples, being many times larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_alws.comparison.checks import LIKELIHOODS, is_distance, is_reliable
from lightning_alws.comparison.groups import Method
from lightning_alws.comparison.table import METRICS, Table, better

COLOURS = ("#1f5f99", "#d1703c", "#5b8c5a")
SPACE = 0.22  # rows between two figures of one method
ARROWS = {"max": "higher is better", "min": "lower is better"}
LIKELIHOOD = "log-likelihood, nats"
TICKS = 6  # intervals at most, that numbers such as −22.75 keep apart
COLUMNS = 3


def draw_chart(table: Table) -> Figure:
    """The chart; methods from top to bottom in the order of the table."""
    kinds: dict[str, list[str]] = {}
    for metric in table.metrics:
        kinds.setdefault(_kind(metric), []).append(metric)
    columns = min(COLUMNS, len(kinds))
    rows = -(-len(kinds) // columns)
    height = 1.3 + 0.3 * len(table.methods)
    figure = Figure(figsize=(1.5 + 3.6 * columns, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (kind, metrics) in zip(axes, kinds.items(), strict=False):
        _draw_panel(axis, table, kind, metrics)
    for index, axis in enumerate(axes):
        if index >= len(kinds):
            axis.set_visible(False)
        elif index % columns:
            axis.tick_params(labelleft=False)
    return figure


def _kind(metric: str) -> str:
    """The panel of a figure: those of one kind share one."""
    return LIKELIHOOD if metric.startswith("test/log_likelihood") else METRICS.get(metric, metric.removeprefix("test/"))


def _draw_panel(axis: Axes, table: Table, kind: str, metrics: Sequence[str]) -> None:
    places = range(len(table.methods))
    for index, metric in enumerate(metrics):
        shift, colour = SPACE * (index - (len(metrics) - 1) / 2), COLOURS[index % len(COLOURS)]
        name = METRICS.get(metric, metric.removeprefix("test/"))
        for place, method in zip(places, table.methods, strict=True):
            _draw_method(axis, method, metric, place + shift, colour, table)
        if len(metrics) > 1:
            axis.plot([], [], "o", color=colour, markersize=5, label=name)
    for reference, style, name in (("floor", "-", "training against test"), ("pixels", ":", "independent pixels")):
        family = metrics[0].removeprefix("test/").split("_")[0]
        values = [value for method in table.methods for value in method.values(f"test/{family}_{reference}")]
        low, high = axis.get_xlim()
        if is_distance(metrics[0]) and values and low - 0.3 * (high - low) <= values[0] <= high + 0.3 * (high - low):
            axis.axvline(values[0], color="0.6", linestyle=style, linewidth=1, zorder=0, label=name)
    if any(table.is_doubtful(method, metric) for method in table.methods for metric in metrics):
        axis.plot([], [], "o", markerfacecolor="white", color=COLOURS[0], markersize=5, label="unreliable: too low")
    direction = better(metrics[0])
    axis.set_xlabel(kind + (f" ({ARROWS[direction]})" if direction else ""), fontsize=9)
    axis.set_yticks(list(places), [method.label for method in table.methods], fontsize=9)
    axis.set_ylim(len(table.methods) - 0.5, -0.5)
    axis.tick_params(axis="x", labelsize=8)
    axis.locator_params(axis="x", nbins=TICKS)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(
            fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, columnspacing=1.0
        )


def _draw_method(axis: Axes, method: Method, metric: str, place: float, colour: str, table: Table) -> None:
    """A dot for each seed, hollow where it is unreliable; a bar from mean − deviation to mean + deviation."""
    for record in method.records:
        value = record.metrics.get(metric, math.nan)
        hollow = metric in LIKELIHOODS and not is_reliable(record, metric)
        axis.plot(
            [value], [place], "o", color=colour, markersize=4.5, markerfacecolor="white" if hollow else colour,
            alpha=1.0 if hollow or len(method.records) == 1 else 0.6, markeredgewidth=1.0,
        )  # fmt: skip
    spread = table.spread(method, metric)
    if spread is not None and spread.deviation is not None:
        axis.errorbar([spread.mean], [place], xerr=[spread.deviation], fmt="|", color=colour, markersize=9, capsize=0)
