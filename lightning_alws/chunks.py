"""Sleep samples that pass through the generator some at a time, so that memory does not grow with N times its layers.

Samples are drawn without gradient; log p_θ(z_n, ·) of a chunk is computed when a prediction asks for it, and again when
its gradient is taken (gradient checkpointing: Chen et al., "Training deep nets with sublinear memory cost", 2016). The
gradient is that of all samples at once to rounding, for a prediction is a sum over samples, Σ_n W_n* log p_θ(z_n, ·).
Beside the activations of one chunk there remain z, x (N, D), the weights (N, B) and what the regression needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_alws.generative import GenerativeModel, Joint, Latents, Sleep, map_latents
from lightning_alws.likelihoods import TensorMap
from lightning_alws.noise import seeded


@dataclass(frozen=True)
class ChunkedJoint(Joint):
    """log p_θ(z_n, ·) of N sleep samples, computed in chunks.

    Attributes:
        model: p_θ(z, x), which computes them.
        z: latents, without gradient.
        x: observations (N, *event), without gradient.
        direct: whether log p_θ(z_n, x_n) itself is regressed.
        size: samples in a chunk.
        detached: whether there is no gradient in θ.
    """

    model: GenerativeModel
    z: Latents
    x: Tensor
    direct: bool
    size: int
    detached: bool = False

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        parts = [
            self._of(rows, lambda joint, part: joint.expectation(part, x), weights[rows]) for rows in self._chunks()
        ]
        return torch.stack(parts).sum(0)

    @property
    def log_joint(self) -> Tensor:
        return torch.cat([self._of(rows, lambda joint: joint.log_joint) for rows in self._chunks()])

    @property
    def targets(self) -> tuple[Tensor, Tensor] | None:
        """As of any joint, without gradient; all N rows at once."""
        with torch.no_grad():
            parts = [self._joint(rows).targets for rows in self._chunks()]
        if None in parts:
            return None
        first, second = zip(*cast(list[tuple[Tensor, Tensor]], parts), strict=True)
        return torch.cat(first), torch.cat(second)

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        return type(self)(self.model, map_latents(self.z, rows), rows(self.x), self.direct, self.size, self.detached)

    def detach(self) -> Self:
        return type(self)(self.model, self.z, self.x, self.direct, self.size, detached=True)

    def _chunks(self) -> list[slice]:
        return [slice(start, start + self.size) for start in range(0, len(self.x), self.size)]

    def _joint(self, rows: slice) -> Joint:
        joint = self.model.joint(map_latents(self.z, lambda part: part[rows]), self.x[rows], self.direct)
        return joint.detach() if self.detached else joint

    def _of(self, rows: slice, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        """A function of one chunk's joint, whose inner values are not kept but computed anew for the gradient."""

        def computed(*given: Tensor) -> Tensor:
            return function(self._joint(rows), *given)

        return cast(Any, checkpoint)(computed, *arguments, use_reentrant=False)


def check_chunks(model: GenerativeModel, direct: bool) -> None:
    """Raise a UserError if the model cannot compute log p_θ(z, x) of samples drawn before."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), seeded(device, "contract", 0):
        sleep = model.sleep(2, direct=direct)
        model.joint(sleep.z, sleep.x, direct)


def sleep_in_chunks(model: GenerativeModel, count: int, size: int, direct: bool) -> Sleep:
    """``count`` sleep samples z_n, x_n ~ p_θ, ``size`` at a time, with a joint that is computed in such chunks."""
    parts = []
    with torch.no_grad():
        for start in range(0, count, size):
            parts.append(model.sleep(min(size, count - start), direct=direct))
    first = parts[0].z
    if isinstance(first, dict):
        z: Latents = {name: torch.cat([cast(dict[str, Tensor], part.z)[name] for part in parts]) for name in first}
    else:
        z = torch.cat([cast(Tensor, part.z) for part in parts])
    x = torch.cat([part.x for part in parts])
    return Sleep(z, x, ChunkedJoint(model, z, x, direct, size))
