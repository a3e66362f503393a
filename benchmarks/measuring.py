"""What benchmarks measure with: passes through a network, seconds and memory of a call, the exponent of a growth."""

from __future__ import annotations

import ctypes
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


class Passes:
    """Counts the samples that pass forwards and backwards through a network while it is open."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.forward, self.backward = network, 0, 0

    def __enter__(self) -> Passes:
        self._hook = self.network.register_forward_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _count(self, network: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.forward += len(output)
        if output.requires_grad:
            output.register_hook(self._count_backward)

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)

    @property
    def equivalents(self) -> int:
        """Passes in units of a forward: one backward is two, for the gradients of inputs and of weights."""
        return self.forward + 2 * self.backward


class Clock:
    """Seconds of a call, with nothing left in the device's queue.

    Args:
        device: that computes.
        processor: whether to count the processors' time in place of the time that passes.
    """

    def __init__(self, device: torch.device, processor: bool = False) -> None:
        self.device, self.processor = device, processor

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.processor else time.perf_counter()

    def time(self, function: Callable[[], object]) -> float:
        before = self.now()
        function()
        return self.now() - before

    def peak_memory(self, function: Callable[[], object]) -> float:
        """Megabytes (2²⁰ bytes) that a call needs beyond what was there before; NaN where the system does not tell."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            function()
            return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20
        if platform.system() != "Linux":
            return math.nan
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed is given back first
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before = _status("VmRSS")
        function()
        return _status("VmHWM") - before


def _status(name: str) -> float:
    """Megabytes by a name of the process's status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def slope(counts: Sequence[float], values: Sequence[float]) -> float:
    """The exponent of the power law nearest to some values, by least squares of their logarithms."""
    x, y = ([math.log(value) for value in side] for side in (counts, values))
    return statistics.linear_regression(x, y).slope
