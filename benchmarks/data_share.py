"""The share of a training step that is spent on its data: the time until a batch is there, over that of the whole step.

    python benchmarks/data_share.py --config configs/images/al_c.yaml --data CIFAR10 [any option of alws fit]

trains 40 steps (--trainer.max_steps for another number) in a temporary folder, without validation, and prints medians
of the steps behind the first five. On a GPU the queue is emptied before and after each batch, so that the copy counts.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor

from cli import main
from datamodules import BatchLoader
from datamodules.streaming import StreamedRows

WARM_UP = 5


def now() -> float:
    """Seconds by the clock, with nothing left in the GPU's queue."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(arguments: list[str]) -> None:
    """Train, and print the medians."""
    asked: list[float] = []
    given: list[float] = []
    about: set[str] = set()
    batches = BatchLoader.__iter__

    def timed(self: BatchLoader) -> Iterator[Tensor]:
        inner = batches(self)
        while True:
            if self.shuffle:
                asked.append(now())
            batch = next(inner, None)
            if batch is None:
                if self.shuffle:
                    asked.pop()
                return
            if self.shuffle:
                given.append(now())
                stored = "streamed" if isinstance(self.rows, StreamedRows) else "held"
                about.add(f"batches of {tuple(batch.shape)} on {batch.device}, rows {stored}")
            yield batch

    BatchLoader.__iter__ = timed  # type: ignore[method-assign]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--test_after_fit=false"]
    with tempfile.TemporaryDirectory() as folder:
        steps = [] if any(part.startswith("--trainer.max_steps") for part in arguments) else ["--trainer.max_steps=40"]
        status = main(["fit", *arguments, *quiet, *steps, f"--runs={folder}", "--name=data_share"])
    if status or len(asked) <= WARM_UP + 2:
        sys.exit(status or "too few steps to measure")
    data = [1000 * (after - before) for before, after in zip(asked, given, strict=False)][WARM_UP:]
    steps_ms = [1000 * (after - before) for before, after in itertools.pairwise(asked)][WARM_UP:]
    print("; ".join(sorted(about)))
    print(f"{len(steps_ms)} steps: {median(steps_ms):.1f} ms each, of which {median(data):.2f} ms are data:", end=" ")
    print(f"{100 * median(data) / median(steps_ms):.2f} %")


if __name__ == "__main__":
    measure(sys.argv[1:])
