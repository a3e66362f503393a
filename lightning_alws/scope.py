"""Whose sleep samples a regression is fitted on: those of one process, or those of all R processes of a run, pooled.

With ``regression_scope: global`` a run on R processes of N samples each is the run of one process with all R·N, for
the loss L of the pooled samples and the pooled wake batch. Every rank computes the value of L, but of its graph only
what depends on its own samples:

    Ĵ(x*) = Σ_r Σ_{n of rank r} W_n* log p_θ(z_n, x*)     for the wake points of all ranks, then their mean

The rule for gradients: as L is alike on every rank, the backward pass is that of Σ_r L_r = R L, and each collective
operation's is its adjoint. A sum that enters L on all ranks alike therefore passes R times the gradient to the rank's
own summand, with nothing to communicate; one that ranks go on with in different ways sums their gradients. DDP's mean
over ranks, (1/R) ∇(R L), is ∇L. So the data's term comes out scaled by R on each rank, while penalties, which every
rank computes whole, are not: scaled as well they would count R times.

What is communicated in a step, for B wake points a rank: observations of all R·B, and one number for each; for the
exact regression those of all R·N sleep samples; for regressions in D features their D × D sums, and nothing that grows
with N (:mod:`lightning_alws.feature_ridge`). Exact regressions of R·N samples are factorised on each rank alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor


class Network(ABC):
    """What R processes can do together; every one calls the same method at the same time.

    Attributes:
        rank: this process, 0..ranks − 1.
        ranks: R.
    """

    rank: int
    ranks: int

    @abstractmethod
    def total(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors of one shape, a new tensor; bitwise the same on all of them."""

    @abstractmethod
    def collect(self, tensor: Tensor) -> list[Tensor]:
        """The ranks' tensors of one shape, in their order."""


class Processes(Network):
    """The processes of the run, by ``torch.distributed``."""

    def __init__(self) -> None:
        self.rank, self.ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def total(self, tensor: Tensor) -> Tensor:
        """By an all-reduce."""
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    def collect(self, tensor: Tensor) -> list[Tensor]:
        """By an all-gather."""
        tensor = tensor.contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.ranks)]
        torch.distributed.all_gather(parts, tensor)
        return parts


class Scope:
    """The samples of one process: its sums, rows and counts are all there are.

    Attributes:
        rank: which part of the samples is this process's.
        ranks: how many parts there are, of equally many samples.
    """

    rank: int = 0
    ranks: int = 1

    def sum(self, part: Tensor, alike: bool = False) -> Tensor:
        """The sum of the ranks' tensors.

        Args:
            part: this rank's.
            alike: whether all ranks go on to the loss with it in the same way, so that its gradient is known without
                asking them.
        """
        return part

    def gather(self, rows: Tensor, even: bool = True) -> Tensor:
        """The rows of all ranks, in their order; all ranks go on with them alike, or without gradient.

        Args:
            rows: (n, ...), this rank's.
            even: whether each has equally many.
        """
        return rows

    def head(self, rows: Tensor, count: int) -> Tensor:
        """The first ``count`` rows of all ranks' rows (N, ...) in their order, or all where there are fewer; detached.

        Args:
            rows: (N, ...), this rank's.
            count: how many.
        """
        return rows[:count].detach()

    def mean(self, rows: Tensor) -> Tensor:
        """The mean over the rows (N, ...) of all ranks, without gradient beyond this rank's."""
        return rows.mean(0)

    def variance(self, rows: Tensor) -> Tensor:
        """Their unbiased variance, likewise."""
        return rows.var(0)

    def agree(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on all ranks, whose tensors are on such a device."""
        return flag


class GlobalScope(Scope):
    """The samples of all processes, pooled.

    Args:
        network: the processes.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.rank, self.ranks = network, network.rank, network.ranks

    def sum(self, part: Tensor, alike: bool = False) -> Tensor:
        return cast(Tensor, _Sum.apply(part, self.network, alike))

    @torch.no_grad()
    def gather(self, rows: Tensor, even: bool = True) -> Tensor:
        """The rows (n, ...) of all ranks, (Σ n, ...); unless ``even``, ranks may have different numbers of them."""
        if even:
            return torch.cat(self.network.collect(rows))
        counts = torch.cat(self.network.collect(torch.tensor([len(rows)], device=rows.device))).tolist()
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = self.network.collect(padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @torch.no_grad()
    def head(self, rows: Tensor, count: int) -> Tensor:
        """The first ``count`` rows of all ranks' together, or all where there are fewer."""
        # Each rank puts in its own rows, and the sum is what they have together.
        head = rows.new_zeros(min(count, self.ranks * len(rows)), *rows.shape[1:])
        place = head[self.rank * len(rows) : (self.rank + 1) * len(rows)]
        place.copy_(rows[: len(place)])
        return self.network.total(head)

    def mean(self, rows: Tensor) -> Tensor:
        return self.sum(rows.sum(0)) / (self.ranks * len(rows))

    def variance(self, rows: Tensor) -> Tensor:
        return self.sum((rows - self.mean(rows)).square().sum(0)) / (self.ranks * len(rows) - 1)

    def agree(self, flag: bool, device: torch.device) -> bool:
        return int(self.network.total(torch.tensor(int(flag), device=device))) == self.ranks


def scope_named(name: str) -> Scope:
    """The scope that ``learning.regression_scope`` names, in the run as it was launched."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if name == "rank" or not distributed or torch.distributed.get_world_size() == 1:
        return Scope()
    return GlobalScope(Processes())


class _Sum(torch.autograd.Function):
    """The sum over ranks, with its adjoint for Σ_r L_r: the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, network: Network, alike: bool) -> Tensor:
        """The sum of the ranks' parts."""
        ctx.network, ctx.alike = network, alike
        return network.total(part.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Where the ranks' gradients are alike, their sum is R times one's own."""
        (grad,) = grads
        return (grad * ctx.network.ranks if ctx.alike else ctx.network.total(grad)), None, None
