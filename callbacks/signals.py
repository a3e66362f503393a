"""Signals that ask a run to end: taken note of at once, obeyed when a batch is complete and saved."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from types import FrameType
from typing import Any, Self

# Ctrl-C, what a system sends before it kills, and what SLURM can send ahead of the time limit (--signal=USR1@120).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """A run ended on a signal, its last checkpoint saved.

    Args:
        number: of the signal; by convention the process exits with 128 more.
        step: optimiser steps taken.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}, which is saved; go on with --ckpt_path last."
        )
        self.number = number

    @classmethod
    def said(cls, message: str) -> Self | None:
        """The same exception from its message, as it arrives from another process; None for another message."""
        found = re.match(r"stopped by (SIG\w+) after step (\d+)", message)
        return cls(signal.Signals[found[1]], int(found[2])) if found else None


class SignalWatch:
    """Notes the first of :data:`SIGNALS`; a second one acts as if nobody watched.

    Attributes:
        received: number of the signal, 0 before one.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def start(self) -> None:
        """Begin to watch, in place of Lightning's own handlers, one of which communicates from within the handler."""
        self.received = 0
        if self._before or threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers in the main thread only; another program then decides itself
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def stop(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        with contextlib.suppress(OSError):  # os.write, for print may be interrupted by itself
            name = signal.Signals(number).name
            os.write(2, f"\nalws: {name} received; saving after this batch (once more ends at once).\n".encode())
        for other in self._before:
            signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_DFL)
