"""Observations that are rows of numbers: the base class of the data sets that are no images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from datamodules.loader import SPLITS, DeviceDataModule
from datamodules.streaming import Rows
from lightning_alws.errors import UserError


class ArrayDataModule(DeviceDataModule):
    """Training, validation and test observations, float32 (n, *event_shape).

    A data set implements ``read``; what it returns is checked: one event shape, no NaN, some training rows.

    Args:
        batch_size: training observations per step and process.
        eval_batch_size: validation, test or prediction observations per step and process.
        seed: of the splits, the order, and whatever is drawn.
    """

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one observation; a model that needs it takes it from here, before any data are read."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read and check the data once, and put them on the trainer's device.

        Raises UserError for a NaN or an infinity, inconsistent dimensions, or no training data.
        """
        first = not self._splits
        super().setup(stage)
        if first:
            check_splits(self.name, self._splits, self.event_shape)

    def observations(self, split: str) -> Tensor:
        """All of a split, (n, *event_shape), on the training device. ValueError for an unknown split."""
        return self.rows(split)[:]


def check_splits(name: str, splits: Mapping[str, Rows], event_shape: tuple[int, ...]) -> None:
    """Raise a UserError that names the split and the first row which cannot be learnt from."""
    for split in SPLITS:
        rows = splits[split][:]
        if tuple(rows.shape[1:]) != tuple(event_shape):
            raise UserError(
                f"the {split} data of {name} have observations of shape {tuple(rows.shape[1:])}, not {event_shape}; "
                "give every split the same columns."
            )
        bad = (~torch.isfinite(rows)).flatten(1).any(1) if len(rows) else torch.zeros(0)
        if bad.any():
            raise UserError(
                f"the {split} data of {name} hold a NaN or an infinity in {int(bad.sum())} of {len(rows)} rows, first "
                f"in row {int(bad.nonzero()[0])}; remove or fill them."
            )
    if len(splits["train"]) == 0:
        raise UserError(f"{name} has no training data; give at least one observation.")
