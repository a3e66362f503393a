"""Series over time, read from a user's CSV with named columns: the base class of the dynamical data sets."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.arrays import ArrayDataModule
from lightning_alws.errors import UserError


class ObservedSeries(ArrayDataModule):
    """One observed series, or a few of one length: all there is, so that every split holds the same.

    A data set implements :meth:`series`. Nothing is held out of one series: what it teaches is judged by simulations
    of the model beside it, not by its likelihood alone.

    Args:
        seed: of the order, and whatever is drawn.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(batch_size=1, eval_batch_size=1, seed=seed)

    def series(self) -> Tensor:
        """The observations, float32 (n, *event_shape), the first dimension of the event being time."""
        raise NotImplementedError

    def read(self) -> dict[str, Tensor]:
        """The same series for each split."""
        series = self.series()
        self.batch_size = self.eval_batch_size = len(series)
        return dict.fromkeys(("train", "val", "test"), series)


def read_columns(path: Path, columns: Sequence[str], argument: str = "data.path") -> dict[str, Tensor]:
    """The named columns of a CSV file whose first line names them, each float64 (T,); further columns are ignored.

    Args:
        path: the file.
        columns: which; names are compared without regard to case and surrounding blanks.
        argument: the option that the file came from, for the message.

    Raises:
        UserError: there is no such file, a column is missing, or a cell is empty, no number, NaN or infinite.
    """
    if not path.is_file():
        raise UserError(f"{argument} is {path}, but there is no such file; check the path.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, PermissionError) as error:
        raise UserError(f"{argument} is {path}, which cannot be read as text ({error}); give a CSV file.") from error
    lines = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
    names = [name.strip().lower() for name in lines[0]] if lines else []
    missing = [column for column in columns if column.lower() not in names]
    if missing:
        raise UserError(
            f"{argument} is {path}, which has no column '{missing[0]}'; name the columns in its first line, among them "
            f"{', '.join(columns)}."
        )
    if len(lines) < 2:
        raise UserError(f"{argument} is {path}, which has no rows of numbers; write one point in time a line.")
    values: dict[str, list[float]] = {column: [] for column in columns}
    for number, row in enumerate(lines[1:], start=1):
        for column in columns:
            place = names.index(column.lower())
            values[column].append(_number(row[place] if place < len(row) else "", path, column, number, argument))
    return {column: torch.tensor(numbers, dtype=torch.float64) for column, numbers in values.items()}


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
