"""Your own observations: a CSV or NumPy file of one row each."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.arrays import ArrayDataModule
from lightning_alws.errors import UserError
from lightning_alws.files import read_bytes, read_text
from lightning_alws.noise import generator

SUFFIXES = (".csv", ".npy")


class Table(ArrayDataModule):
    """The rows of a file, split by a seeded permutation.

    A ``.csv`` file holds one observation (D,) a line, in numbers separated by commas, with or without a line of
    column names; a ``.npy`` file an array (n, ...) of observations of any shape.

    Args:
        path: the file.
        batch_size: training observations per step and process.
        eval_batch_size: validation, test or prediction observations per step and process.
        validation_size: how many rows are for validation.
        test_size: how many rows are for the test.
        seed: of the split and the order.

    Raises:
        UserError: the file is missing, no table of numbers, or has too few rows.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        validation_size: int = 100,
        test_size: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.save_hyperparameters(logger=False)
        if validation_size < 0 or test_size < 0:
            raise UserError(
                f"data.validation_size is {validation_size} and data.test_size {test_size}; neither may be negative."
            )
        self.path, self.validation_size, self.test_size = path, validation_size, test_size

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self._table.shape[1:])

    @functools.cached_property
    def _table(self) -> Tensor:
        rows = read_table(Path(self.path))
        bad = (~torch.isfinite(rows)).flatten(1).any(1)
        if bad.any():
            raise UserError(
                f"{self.path} has a NaN or an infinity in {int(bad.sum())} of {len(rows)} rows, first in row "
                f"{int(bad.nonzero()[0]) + 1}; remove or fill them."
            )
        return rows

    def read(self) -> dict[str, Tensor]:
        """The rows of the three splits.

        Raises UserError if validation and test leave no row for training.
        """
        rows, held_back = self._table, self.validation_size + self.test_size
        if held_back >= len(rows):
            raise UserError(
                f"data.validation_size {self.validation_size} and data.test_size {self.test_size} take all "
                f"{len(rows)} rows of {self.path}; lower them."
            )
        order = torch.randperm(len(rows), generator=generator(self.seed, "split"))
        test, val, train = order.split([self.test_size, self.validation_size, len(rows) - held_back])
        return {"train": rows[train], "val": rows[val], "test": rows[test]}


def read_table(path: Path, argument: str = "data.path") -> Tensor:
    """The observations of a CSV or NumPy file, float32 (n, ...).

    Args:
        path: the file.
        argument: the option that it came from, for the message.

    Raises:
        UserError: there is no such file, it is of another kind, or not a table of numbers.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{argument} is {path}; give a file that ends in {' or '.join(SUFFIXES)}.")
    if path.suffix == ".npy":
        try:
            array = np.lib.format.read_array(io.BytesIO(read_bytes(path, argument)), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} is no NumPy array of numbers ({error}); save it with numpy.save.") from error
        if array.ndim == 0 or array.dtype.kind not in "fiub":
            raise UserError(f"{path} holds {array.dtype} of shape {array.shape}; save an array (n, ...) of numbers.")
        return torch.from_numpy(array.astype(np.float32))
    lines = [line for line in read_text(path, argument).splitlines() if line.strip()]
    rows = [line.split(",") for line in lines]
    named = bool(rows) and not all(_is_number(cell) for cell in rows[0])
    rows = rows[named:]
    if not rows:
        raise UserError(f"{path} has no rows of numbers; write one observation a line.")
    for number, row in enumerate(rows, start=1 + named):
        wrong = [cell for cell in row if not _is_number(cell)]
        if wrong:
            raise UserError(f"{path} has '{wrong[0].strip()}' in line {number}, which is no number; correct the line.")
        if len(row) != len(rows[0]):
            raise UserError(
                f"{path} has {len(row)} columns in line {number} and {len(rows[0])} before it; give every line the "
                "same columns."
            )
    return torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float32)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
