"""Series over time, read from a user's CSV with named columns: the base class of the dynamical data sets."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.arrays import ArrayDataModule
from datamodules.loader import SPLITS, BatchLoader
from lightning_alws.errors import UserError
from lightning_alws.files import read_text

SAME_STEP = 1e-3  # relative difference of two time steps that is rounding in the file


class ObservedSeries(ArrayDataModule):
    """One observed series, or a few of one length: all there is, so that every split holds the same.

    A data set implements :meth:`series`. Nothing is held out of one series: what it teaches is judged by simulations
    of the model beside it, not by its likelihood alone. All of them are one batch.

    Args:
        seed: of the order, and whatever is drawn.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(batch_size=1, eval_batch_size=1, seed=seed)

    def series(self) -> Tensor:
        """The observations, float32 (n, *event_shape), the first dimension of the event being time."""
        raise NotImplementedError

    def read(self) -> dict[str, Tensor]:
        """The same series for each split. Raises a UserError where nothing in them ever changes."""
        series = self.series()
        if bool((series == series.flatten()[0]).all()):
            raise UserError(
                f"{self.name} holds the number {float(series.flatten()[0]):g} at every time, from which nothing can "
                "be learnt; give another series."
            )
        return dict.fromkeys(SPLITS, series)

    def _loader(self, split: str, batch_size: int, shuffle: bool) -> BatchLoader:
        """All in one batch: a batch size is nothing to choose here."""
        return super()._loader(split, len(self.rows(split)), shuffle)


def named_columns(path: str | None, columns: Sequence[str] | None) -> list[str]:
    """The columns that a user names along with a file, none without one.

    Raises:
        UserError: one of the two is given without the other.
    """
    if path is not None and not columns:
        raise UserError(f"data.path is {path}, but data.columns names none of its columns; give some, such as [x].")
    if path is None and columns:
        raise UserError(
            f"data.columns is {', '.join(columns)}, but there is no file with columns; give one as data.path."
        )
    return [*(columns or [])]


def read_columns(
    path: Path, columns: Sequence[str], argument: str = "data.path", optional: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The named columns of a CSV file whose first line names them, each float64 (T,); further columns are ignored.

    Args:
        path: the file.
        columns: which; names are compared without regard to case and surrounding blanks.
        argument: the option that the file came from, for the message.
        optional: columns to be read where the file has them.

    Raises:
        UserError: there is no such file, a column is missing or there twice, or a cell is empty, no number, NaN or
            infinite.
    """
    try:
        table = list(csv.reader(read_text(path, argument).splitlines()))
    except csv.Error as error:
        raise UserError(f"{argument} is {path}, which is no table ({error}); give a CSV file.") from error
    lines = [row for row in table if any(cell.strip() for cell in row)]
    if not lines:
        raise UserError(f"{argument} is {path}, which is empty; write the columns' names, and below one row a time.")
    names = [name.strip().lower() for name in lines[0]]
    missing = [column for column in columns if column.lower() not in names]
    if missing:
        raise UserError(
            f"{argument} is {path}, which has no column '{missing[0]}'; name the columns in its first line, separated "
            f"by commas, among them {', '.join(columns)}."
        )
    columns = [*columns, *(column for column in optional if column.lower() in names)]
    for column in columns:
        if names.count(column.lower()) > 1:
            raise UserError(f"{argument} is {path}, which has two columns '{column}'; name one of them otherwise.")
        if [other.lower() for other in columns].count(column.lower()) > 1:
            raise UserError(f"of {argument} {path} the column '{column}' is asked for twice; name each column once.")
    if len(lines) < 2:
        raise UserError(f"{argument} is {path}, which has no rows of numbers; write one point in time a line.")
    values: dict[str, list[float]] = {column: [] for column in columns}
    for number, row in enumerate(lines[1:], start=1):
        for column in columns:
            place = names.index(column.lower())
            values[column].append(_number(row[place] if place < len(row) else "", path, column, number, argument))
    return {column: torch.tensor(numbers, dtype=torch.float64) for column, numbers in values.items()}


def standard_scale(rows: Tensor, path: Path, columns: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column of rows (T, D), shapes (D,).

    Raises:
        UserError: a column never changes.
    """
    for column, never in zip(columns, rows.amax(0) == rows.amin(0), strict=True):
        if never:
            raise UserError(f"data.path is {path}, whose column '{column}' never changes; leave it out.")
    return rows.mean(0), rows.std(0)


def check_even(path: Path, times: Tensor, unit: str, argument: str = "data.path") -> float:
    """The step of evenly spaced times (T,) of a file's rows, in their unit.

    Raises:
        UserError: times are less than two, do not grow, or their steps differ.
    """
    if len(times) < 2:
        raise UserError(f"{argument} is {path}, which has one row only; give two points in time or more.")
    steps = times.diff()
    backwards = steps <= 0
    if backwards.any():
        row = int(backwards.nonzero()[0]) + 2
        raise UserError(
            f"{argument} is {path}, whose time goes from {float(times[row - 2]):.6g} to {float(times[row - 1]):.6g} "
            f"{unit} in row {row}; give rows in order of time."
        )
    step = float(steps.median())
    uneven = (steps - step).abs() > SAME_STEP * step
    if uneven.any():
        row = int(uneven.nonzero()[0]) + 2
        raise UserError(
            f"{argument} is {path}, whose time steps are {step:.6g} {unit} but {float(steps[row - 2]):.6g} {unit} "
            f"before row {row}; give rows that are evenly spaced."
        )
    return step


def _number(cell: str, path: Path, column: str, row: int, argument: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"{argument} is {path}, whose column '{column}' holds '{cell.strip()}' in row {row}; every point in time "
            "needs a finite number."
        )
    return number
