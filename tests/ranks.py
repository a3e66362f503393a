"""Ranks without processes: threads that meet at a barrier, and the sleep samples of all of them in one."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from lightning_alws.generative import Joint, Sleep
from lightning_alws.scope import Network

T = TypeVar("T")


class Meeting:
    """Where threads exchange tensors.

    Attributes:
        calls: for each meeting, what was called and how many numbers each rank brought.
    """

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks, timeout=60)
        self.brought: list[Tensor] = [torch.empty(0)] * ranks
        self.calls: list[tuple[str, int]] = []

    def exchange(self, rank: int, name: str, tensor: Tensor) -> list[Tensor]:
        self.brought[rank] = tensor
        self.barrier.wait()
        everyones = list(self.brought)
        assert len({part.shape for part in everyones}) == 1, "ranks brought different shapes"
        if rank == 0:
            self.calls.append((name, tensor.numel()))
        self.barrier.wait()
        return everyones


class Thread(Network):
    """One of the ranks."""

    def __init__(self, rank: int, ranks: int, meeting: Meeting) -> None:
        self.rank, self.ranks, self.meeting = rank, ranks, meeting

    def total(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.meeting.exchange(self.rank, "total", tensor.detach())).sum(0)

    def collect(self, tensor: Tensor) -> list[Tensor]:
        return [part.clone() for part in self.meeting.exchange(self.rank, "collect", tensor.detach())]


def on_ranks(ranks: int, work: Callable[[Network], T]) -> tuple[list[T], Meeting]:
    """What the work returns on each of several ranks at once, and what they exchanged."""
    meeting = Meeting(ranks)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(Thread(rank, ranks, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)] + errors
    if first:
        raise first[0]
    return [results[rank] for rank in range(ranks)], meeting


def replicas(module: nn.Module, ranks: int) -> list[nn.Module]:
    """Copies of a module, as DDP has one on each rank."""
    return [copy.deepcopy(module) for _ in range(ranks)]


def concatenate(parts: list[Sleep]) -> Sleep:
    """The sleep samples of several draws as those of one, with the gradient in θ of each."""
    if isinstance(parts[0].z, dict):
        z = {name: torch.cat([part.z[name] for part in parts]) for name in parts[0].z}  # type: ignore[index]
    else:
        z = torch.cat([part.z for part in parts])  # type: ignore[misc, assignment]
    return Sleep(z, torch.cat([part.x for part in parts]), _concatenate_joints([part.joint for part in parts]))


def _concatenate_joints(joints: list[Joint]) -> Joint:
    def rows_of(joint: Joint) -> list[Tensor]:
        found: list[Tensor] = []

        def note(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        joint.map(note, lambda shared: shared)
        return found

    others = [iter(rows_of(joint)) for joint in joints[1:]]
    return joints[0].map(lambda rows: torch.cat([rows, *(next(other) for other in others)]), lambda shared: shared)
