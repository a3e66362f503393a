"""Numbers and tables as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_alws.comparison.groups import Spread


def show(spread: Spread | None) -> str:
    """Mean ± deviation, to the deviation's second digit or the mean's fifth; four digits of a mean alone."""
    if spread is None:
        return ""
    mean, deviation = spread.mean, spread.deviation
    if not math.isfinite(mean):
        return "nan"
    if deviation is None or deviation == 0:
        digits = max(0, 3 - math.floor(math.log10(abs(mean)))) if mean else 0
        return f"{mean:.{min(digits, 4)}f}".replace("-", "−")
    size = math.floor(math.log10(max(abs(mean), deviation)))
    digits = max(0, min(1 - math.floor(math.log10(deviation)), 4 - size, 4))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}".replace("-", "−")


def count(values: Sequence[float]) -> str:
    """Counts that are equal in all runs, or their range."""
    if not values:
        return ""
    low, high = (f"{value:,.0f}".replace(",", " ") for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def numbers(spread: Spread | None) -> tuple[str, str]:
    """Mean and deviation in full, empty where there is none."""
    if spread is None:
        return "", ""
    return repr(spread.mean), "" if spread.deviation is None else repr(spread.deviation)


def aligned(columns: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right, headings underlined."""
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in range(len(columns[0])):
        cells = [
            column[row].ljust(width) if index == 0 else column[row].rjust(width)
            for index, (column, width) in enumerate(zip(columns, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
