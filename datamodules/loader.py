"""Data held whole on the training device, or streamed to it: the base class of the data sets, and their loader."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping

import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules.streaming import Rows, in_batches
from lightning_alws.errors import UserError
from lightning_alws.noise import generator, mix_seed

SPLITS = ("train", "val", "test")
Convert = Callable[[Tensor, int], Tensor]


def unchanged(rows: Tensor, seed: int) -> Tensor:
    """The conversion of data that are floats already."""
    return rows


class BatchLoader:
    """Batches of rows, picked from one tensor, or streamed, and converted on their device.

    The order of epoch e is a permutation seeded by (seed, "order", e), the same on every rank; the seed handed to
    ``convert`` for batch i mixes (seed, "binarise", rank, e, i). The global generators are never touched.

    Of W ranks, rank r takes every W-th row of the order, from the r-th on. Shuffled (training), the last n mod W
    rows of the order are left out; otherwise (evaluation) the shards wrap around, so that up to W - 1 rows are
    seen twice. All ranks thus have equal batches, and one rank alone sees every row once, the last batch smaller.

    Args:
        rows: (n, ...), as stored; ``convert`` makes floats of a batch of them and a seed.
        batch_size: rows per batch and rank.
        shuffle: a new order each epoch, otherwise that of ``rows``.
        rank, world_size: this process, 0..world_size - 1, and how many share the rows.

    Raises UserError if ``batch_size`` is below 1 or there are too few rows to share.
    """

    batch_sampler: None = None  # Lightning asks for it once a loader has a sampler

    def __init__(
        self,
        rows: Rows,
        convert: Convert,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        require_positive("batch_size", batch_size)
        n = len(rows)
        if n < (world_size if shuffle else 1):
            raise UserError(f"{n} rows are too few for world_size={world_size}; provide one or more per process.")
        self.rows, self.convert, self.batch_size, self.seed = rows, convert, batch_size, seed
        self.shuffle, self.rank, self.world_size = shuffle, rank, world_size
        self._shard_size = n // world_size if shuffle else -(-n // world_size)
        self._epoch = 0
        self._position = 0  # batches of the epoch handed out
        self._restored = False  # a state was loaded and no batch handed out since
        self._lead = 0  # how far Lightning's count of epochs is ahead of ours

    @property
    def sampler(self) -> BatchLoader:
        """The loader itself: Lightning calls ``loader.sampler.set_epoch``."""
        return self

    def __len__(self) -> int:
        """Batches per epoch, equal on all ranks."""
        return -(-self._shard_size // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration.

        A restored loader first finishes the epoch it was in, under whatever number, and keeps that lead from then on:
        Lightning counts an epoch that ``max_steps`` cut as done, and after a resume may count one without batches.
        """
        if self._restored:
            if epoch > self._epoch and self._position >= len(self):
                self._epoch, self._position = self._epoch + 1, 0
            self._lead = epoch - self._epoch
        elif epoch - self._lead != self._epoch:
            self._epoch, self._position = epoch - self._lead, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were handed out (``position``). Lightning stores it in checkpoints."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iteration begin at batch ``position`` of ``epoch``; later ones begin at batch 0."""
        self._epoch, self._position = state_dict["epoch"], state_dict["position"]
        self._restored, self._lead = True, 0

    def indices(self, epoch: int) -> Tensor:
        """This rank's row indices in the order of the epoch, int64 on the CPU."""
        n = len(self.rows)
        order = torch.randperm(n, generator=generator(self.seed, "order", epoch)) if self.shuffle else torch.arange(n)
        return order[(torch.arange(self._shard_size) * self.world_size + self.rank) % n]

    def __iter__(self) -> Iterator[Tensor]:
        """Batches (B, ...), float32, on the device of the rows.

        The epoch is read when the first batch is asked for, not before: Lightning makes the first iterator of a run
        before it calls :meth:`set_epoch`, and keeps it after a resume.
        """
        epoch, start = self._epoch, self._position if self._restored else 0
        self._restored = False
        order = self.indices(epoch)[start * self.batch_size :]
        for i, rows in enumerate(in_batches(self.rows, order, self.batch_size), start):
            self._position = i + 1
            yield self.convert(rows, mix_seed(self.seed, "binarise", self.rank, epoch, i))


class DeviceDataModule(pl.LightningDataModule):
    """Training, validation and test rows, held whole on the training device unless a data set streams them.

    A data set implements :meth:`read`; where rows are not stored as the floats that the model sees, :meth:`converter`.

    Args:
        batch_size: training rows per step and process.
        eval_batch_size: validation, test or prediction rows per step and process.
        seed: of the splits, the order, and whatever is drawn.

    Raises UserError for a batch size below 1.
    """

    name: str  # the class, and what changes the data

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int) -> None:
        super().__init__()
        require_positive("batch_size", batch_size)
        require_positive("eval_batch_size", eval_batch_size)
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.name = type(self).__name__
        self._splits: dict[str, Rows] = {}

    @abstractmethod
    def read(self) -> Mapping[str, Rows]:
        """The rows (n, ...) of "train", "val" and "test", on the CPU."""

    def converter(self, split: str) -> Convert:
        """What makes a batch of a split from stored rows and a seed; here nothing is to be done."""
        return unchanged

    def setup(self, stage: str | None = None) -> None:
        """Read the data once, and put them on the trainer's device (the CPU without a trainer).

        Raises UserError if the data are missing, broken or too few.
        """
        self._splits = self._splits or dict(self.read())
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        self._splits = {split: rows.to(device) for split, rows in self._splits.items()}

    def rows(self, split: str) -> Rows:
        """All of a split as it is stored. ValueError for an unknown split."""
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
        if not self._splits:
            raise RuntimeError(f"{self.name} has read no data yet; call prepare_data() and setup() first.")
        return self._splits[split]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of rows of each split, all ranks together."""
        return {split: len(self.rows(split)) for split in SPLITS}

    def _loader(self, split: str, batch_size: int, shuffle: bool) -> BatchLoader:
        rows = self.rows(split)
        if len(rows) == 0:
            raise UserError(
                f"{self.name} has no {split} data; set its {split} size (validation_size for val) above 0, or "
                "limit_val_batches=0."
            )
        ranks = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return BatchLoader(rows, self.converter(split), batch_size, self.seed, shuffle, *ranks)

    def train_dataloader(self) -> BatchLoader:
        """Training batches in a new order each epoch, or in one order under ``overfit_batches``."""
        # Lightning can switch off the shuffling of torch's own DataLoader only
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return self._loader("train", self.batch_size, shuffle=not overfit)

    def val_dataloader(self) -> BatchLoader:
        """Validation batches, always the same."""
        return self._loader("val", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> BatchLoader:
        """Test batches, always the same."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(self, batch: Tensor, device: torch.device, dataloader_idx: int) -> Tensor:
        """The batch itself where the loader made it on the device already."""
        return batch if batch.device == device else batch.to(device)


def require_positive(argument: str, value: int) -> None:
    """Raise a UserError for a count below 1."""
    if value < 1:
        raise UserError(f"{argument}={value} is below 1; set it to 1 or more.")
