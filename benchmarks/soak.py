"""Whether a long run stays as it began: memory, open files and step time of the quickstart, over many thousand steps.

    python benchmarks/soak.py [--steps 20000] [--memory 1.05] [--time 1.25] [more arguments of alws fit]

samples them every hundredth of the run, prints the medians of the first and the last tenth and their ratio, and exits
with status 1 where memory or step time has grown by more than the given factors, or any file stays open that was not at
first. The run validates and saves as the quickstart does. A tenth of it goes by before the first sample: caches fill.
Ctrl-C and SIGTERM end it as any run, and what there is by then is reported.
The median step of the first and of the last thousand is printed too, the former from the very beginning.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from cli import CONFIGS, main

SAMPLES = 100
THOUSAND = 1000


def resident() -> float:
    """Memory of this process, in megabytes (2²⁰ bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Soak(pl.Callback):
    """Samples memory, open files and seconds per step; the last of these without validations.

    Attributes:
        rows: one for each sample; what the columns are, their names tell.
        steps: seconds of each step, four bytes apiece: this is to measure memory, not to fill it.
    """

    rows: list[dict[str, float]] = []
    steps = array("f")

    def __init__(self, interval: int, first: int) -> None:
        self.interval, self.first = interval, first
        self._start = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        Soak.steps.append(time.perf_counter() - self._start)
        if trainer.global_step % self.interval or trainer.global_step < self.first:
            return
        row = {
            "resident memory, MB": resident(),
            "open files": float(len(os.listdir("/proc/self/fd"))),
            "step, ms": 1000 * statistics.median(Soak.steps[-self.interval :]),
        }
        if torch.cuda.is_available():
            row["CUDA memory, MB"] = torch.cuda.memory_allocated() / 2**20
            row["CUDA memory reserved, MB"] = torch.cuda.memory_reserved() / 2**20
        Soak.rows.append(row)


def report(rows: list[dict[str, float]], memory: float, seconds: float) -> list[str]:
    """Print the table; returns what has grown beyond its bound.

    Args:
        rows: the samples, in order.
        memory: how much the memory may grow, as a factor.
        seconds: likewise the step time.
    """
    tenth = max(1, len(rows) // 10)
    grown = []
    print(f"{len(rows)} samples\n{'':26} {'first tenth':>11} {'last tenth':>11} {'ratio':>7} {'bound':>7}")
    for name in rows[0]:
        first, last = (statistics.median(row[name] for row in part) for part in (rows[:tenth], rows[-tenth:]))
        bound = seconds if name.startswith("step") else 1.0 if name == "open files" else memory
        ratio = last / first if first else 1.0
        print(f"{name:26} {first:11.2f} {last:11.2f} {ratio:7.3f} {bound:7.3f}")
        if ratio > bound:
            grown.append(name)
    return grown


def soak() -> int:
    """Run and report; returns the exit status."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=20_000)
    options.add_argument("--memory", type=float, default=1.05, help="how much the memory may grow, as a factor")
    options.add_argument("--time", type=float, default=1.25, help="likewise the median step")
    given, more = options.parse_known_args()
    if given.steps < 2 * SAMPLES:
        options.error(f"--steps is {given.steps}; give at least {2 * SAMPLES}")
    when = {"interval": given.steps // SAMPLES, "first": given.steps // 10}
    sampler = json.dumps([{"class_path": "soak.Soak", "init_args": when}])
    sys.modules["soak"] = sys.modules[__name__]  # the same class under the name that the config gives
    with tempfile.TemporaryDirectory() as folder:
        status = main(
            ["fit", "--config", str(CONFIGS / "quickstart.yaml"), "--runs", folder, "--name", "soak",
             "--trainer.max_steps", str(given.steps), "--trainer.callbacks", sampler, "--test_after_fit",
             "false", "--trainer.enable_progress_bar", "false", *more]
        )  # fmt: skip
    if len(Soak.rows) < 2:  # stopped, or failed, before there was anything to compare
        return status or 1
    grown = report(Soak.rows, given.memory, given.time)
    first, last = (1000 * statistics.median(part) for part in (Soak.steps[:THOUSAND], Soak.steps[-THOUSAND:]))
    print(f"{len(Soak.steps)} steps; median of the first thousand {first:.2f} ms, of the last {last:.2f} ms")
    print(f"Grown beyond the bound: {', '.join(grown)}." if grown else "Nothing has grown beyond its bound.")
    return status or (1 if grown else 0)


if __name__ == "__main__":
    sys.exit(soak())
