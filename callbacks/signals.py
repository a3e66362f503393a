"""Signals that ask a run to end: taken note of at once, obeyed when a batch is complete and saved.

Where nothing is to be saved, in a test, they are obeyed at once.
"""

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
    """A run ended on a signal, its last checkpoint saved; or a command that trains nothing did.

    Args:
        number: of the signal; by convention the process exits with 128 more.
        step: optimiser steps taken, where a training ended.
        command: ``test``, ``validate`` or ``predict``, where one of these did.
    """

    def __init__(self, number: int, step: int | None = None, command: str = "test") -> None:
        where = (
            f"after step {step}, which is saved; go on with --ckpt_path last."
            if step is not None
            else f"during the command {command}; the checkpoints are whole, give the command alws {command} again."
        )
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.number = number

    @classmethod
    def said(cls, message: str) -> Self | None:
        """The same exception from its message, as it arrives from another process; None for another message."""
        found = re.match(r"stopped by (SIG\w+) (?:after step (\d+)|during the command (\w+))", message)
        if found is None:
            return None
        return cls(signal.Signals[found[1]], int(found[2]) if found[2] else None, found[3] or "")


class SignalWatch:
    """Notes the first of :data:`SIGNALS`; a second one acts as if nobody watched.

    Attributes:
        received: number of the signal, 0 before one.
    """

    def __init__(self) -> None:
        self.received = 0
        self._command = "fit"
        self._before: dict[int, Any] = {}

    def start(self, command: str = "fit") -> None:
        """Begin to watch, in place of Lightning's own handlers, one of which communicates from within the handler.

        Args:
            command: in any but ``fit`` a signal raises :class:`Interrupted` where it arrives: Lightning takes note of a
                SIGTERM between two batches alone, and what takes long in a test comes behind the last.
        """
        self.received, self._command = 0, command
        if self._before or threading.current_thread() is not threading.main_thread():
            return  # Python allows handlers in the main thread only; another program then decides itself
        handler = self._note if command == "fit" else self._raise
        self._before = {number: signal.signal(number, handler) for number in SIGNALS}

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

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.stop()  # a second one ends at once
        raise Interrupted(number, command=self._command)
