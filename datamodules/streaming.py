"""Rows that stay in a memory-mapped file and reach the device batch by batch, fetched ahead by a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

AHEAD = 3  # batches being fetched while one is worked on


class StreamedRows:
    """Some rows of a stored tensor, in an order of their own; what is asked of them is copied to the device.

    It stands where a tensor of all rows would: it has a length, a shape, a dtype and a device, and can be indexed.

    Args:
        stored: (N, ...), on the CPU, such as a memory-mapped file.
        index: which of its rows these are, int64 (n,).
        device: where rows are handed out.
    """

    def __init__(self, stored: Tensor, index: Tensor, device: torch.device | str = "cpu") -> None:
        self.stored, self.index, self.device = stored, index, torch.device(device)
        self.shape, self.dtype = torch.Size((len(index), *stored.shape[1:])), stored.dtype

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device | str) -> StreamedRows:
        """The same rows, handed out on another device."""
        return StreamedRows(self.stored, self.index, device)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """The chosen rows (m, ...) on the device; the choice may lie on any."""
        chosen = self.index[rows.cpu() if isinstance(rows, Tensor) else rows]
        return self.stored[chosen].to(self.device)

    def batches(self, choices: Sequence[Tensor]) -> Iterator[Tensor]:
        """The rows of one choice after the other, on the device.

        A thread reads ahead, into pinned memory where the device is a GPU, so that neither the disk nor the copy to the
        GPU holds up a step. What is read ahead is not handed out: a position counted by the caller stays exact.

        Args:
            choices: row numbers of each batch, int64 on the CPU.
        """
        pinned = self.device.type == "cuda"
        with ThreadPoolExecutor(1) as thread:
            pending: deque[Future[Tensor]] = deque()
            try:
                for number in range(len(choices) + AHEAD):
                    if number < len(choices):
                        pending.append(thread.submit(self._fetch, choices[number], pinned))
                    if number >= AHEAD:
                        # The caching allocator of pinned memory reuses a block only when its copy has been made.
                        yield pending.popleft().result().to(self.device, non_blocking=pinned)
            finally:
                for future in pending:
                    future.cancel()

    def _fetch(self, rows: Tensor, pinned: bool) -> Tensor:
        chosen = self.index[rows]
        batch = torch.empty((len(chosen), *self.shape[1:]), dtype=self.dtype, pin_memory=pinned)
        return torch.index_select(self.stored, 0, chosen, out=batch)


Rows = Tensor | StreamedRows


def placed(stored: Tensor, index: Tensor, megabytes: int) -> Rows:
    """Rows ``index`` of a stored tensor: copied as a tensor up to so many megabytes (2²⁰ bytes), else streamed."""
    size = len(index) * stored[0].numel() * stored.element_size() if len(stored) else 0
    return stored[index] if size <= megabytes * 2**20 else StreamedRows(stored, index)


def in_batches(rows: Rows, order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """The rows in the order given, int64 on the CPU, in batches on the device of the rows; none for an empty order."""
    if len(order) == 0:  # torch would split it into one batch of nothing
        return iter(())
    if isinstance(rows, StreamedRows):
        return rows.batches(order.split(batch_size))
    return (rows[choice] for choice in order.to(rows.device).split(batch_size))
