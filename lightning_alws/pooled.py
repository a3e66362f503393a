"""Sleep samples of one rank as a part of all ranks', and those of all ranks to be predicted.

How gradients add up is said in :mod:`lightning_alws.scope`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lightning_alws.generative import Joint, Sleep, map_latents
from lightning_alws.likelihoods import TensorMap
from lightning_alws.scope import Scope


def share(sleep: Sleep, scope: Scope) -> Sleep:
    """This rank's sleep samples as a part of all ranks', which predict together."""
    return sleep if scope.ranks == 1 else Sleep(sleep.z, sleep.x, SharedJoint(sleep.joint, scope))


def collect(sleep: Sleep, scope: Scope) -> Sleep:
    """The sleep samples of all ranks, to be predicted: z, x and log p_θ(z, x), without gradient."""
    if scope.ranks == 1:
        return sleep
    z = map_latents(sleep.z, scope.gather)
    return Sleep(z, scope.gather(sleep.x), CollectedJoint(sleep.joint, scope))


@dataclass(frozen=True)
class SharedJoint(Joint):
    """log p_θ(z_n, ·) of one rank's samples, with predictions from those of all ranks.

    Attributes:
        own: of this rank's samples.
        scope: all ranks.
    """

    own: Joint
    scope: Scope

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        """Ĵ(x_b) for observations (B, *event) that all ranks hold, from W (N, B) of this rank's own samples."""
        expected = self.own.expectation(weights, x)
        if not self.own.is_sum:
            # What does not depend on the weights is there once, not R times.
            constant = self.own[:1].expectation(torch.zeros_like(weights[:1]), x)
            expected = expected - (1 - 1 / self.scope.ranks) * constant
        return self.scope.sum(expected, alike=True)

    @property
    def targets(self) -> tuple[Tensor, Tensor] | None:
        """As of any joint, of this rank's samples."""
        return self.own.targets

    @property
    def log_joint(self) -> Tensor:
        """log p_θ(z_n, x_n) at this rank's samples, shape (N,)."""
        return self.own.log_joint

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        return type(self)(self.own.map(rows, shared), self.scope)

    def detach(self) -> Self:
        return type(self)(self.own.detach(), self.scope)


@dataclass(frozen=True)
class CollectedJoint(Joint):
    """log p_θ(z_v, x_v) of the samples of all ranks, which are predicted and not predicted from; without gradient.

    Attributes:
        own: of this rank's samples.
        scope: all ranks.
    """

    own: Joint
    scope: Scope

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        """Raises NotImplementedError: only samples that the regression is fitted on predict."""
        raise NotImplementedError("samples that were collected from all ranks are only predicted")

    @property
    def targets(self) -> tuple[Tensor, Tensor] | None:
        """As of any joint, of all ranks' samples."""
        with torch.no_grad():
            targets = self.own.targets
            return None if targets is None else (self.scope.gather(targets[0]), self.scope.gather(targets[1]))

    @property
    def log_joint(self) -> Tensor:
        """log p_θ(z_v, x_v), shape (R·N_v,)."""
        with torch.no_grad():
            return self.scope.gather(self.own.log_joint)

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        return type(self)(self.own.map(rows, shared), self.scope)

    def detach(self) -> Self:
        return type(self)(self.own.detach(), self.scope)
