"""Running what a plan misses: one training after the other, each in a process of its own."""

from __future__ import annotations

import fcntl
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from lightning_alws.comparison.plan import PlannedRun, State
from lightning_alws.errors import UserError

LOCK = ".compare.lock"
PATIENCE = 60  # seconds for a training that was told to stop
STOPPED = 130  # exit status of what Ctrl-C stopped


def start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """``alws`` with the arguments, by this interpreter and this very code.

    In a process group of its own, so that Ctrl-C in the terminal reaches it once, and by us.
    """
    program = Path(__file__).parents[2] / "cli.py"
    return subprocess.Popen([sys.executable, str(program), *arguments], process_group=0)


def run_all(runs: Sequence[tuple[PlannedRun, State]], max_minutes: float | None = None) -> tuple[list[str], bool]:
    """Run each to its end; one that fails does not keep the others from running.

    Args:
        runs: those that have a command, with their states.
        max_minutes: after so many, the training at work is stopped as by Ctrl-C, to be resumed another time.

    Returns the failures, each as a phrase, and whether all were begun and none was stopped. Raises KeyboardInterrupt
    after Ctrl-C, once the training at work has stopped.
    """
    failures: list[str] = []
    end = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    for number, (run, state) in enumerate(runs, 1):
        if end is not None and time.monotonic() >= end:
            return failures, False
        print(f"[{number}/{len(runs)}] {run.folder}: alws {shlex.join(state.command)}", flush=True)
        process = start(state.command)
        try:
            status = process.wait(None if end is None else max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            stop(process)
            return failures, False
        except BaseException:
            stop(process)
            raise
        if status:
            failures.append(f"{run.folder} ended with exit status {status}")
            print(f"alws: {failures[-1]}; going on with the others", file=sys.stderr, flush=True)
    return failures, True


def stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a training, which then says so in its ``results.json``; kill it if it does not end.

    A killed one goes on from its last checkpoint as well; it may have been in a long validation, which it ends first.
    """
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        print(f"alws: the training did not stop within {PATIENCE} s; it is killed", file=sys.stderr, flush=True)
        process.kill()
        process.wait()
    except BaseException:  # a second Ctrl-C
        process.kill()
        process.wait()
        raise


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """The only one at work on a plan's folder of runs; raises UserError if there is another."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another alws compare --run is at work in {folder}; wait for it, or stop it first."
            ) from error
        yield


@contextmanager
def terminations_as_interrupts() -> Iterator[None]:
    """Inside the block, an end by ``kill`` or of the terminal stops the training at work as Ctrl-C does.

    What is ignored, under ``nohup`` or behind ``&`` in a script, stays so for us. It is not ignored by the trainings,
    who would inherit that and not hear when they are told to stop.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def ignore(number: int, frame: FrameType | None) -> None:
        """A handler, not SIG_IGN, which the trainings would inherit."""

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        signal.signal(number, ignore if handler == signal.SIG_IGN else interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
