"""What a command says on standard error: one sentence and an exit status for each error, and no idle warnings."""

from __future__ import annotations

import errno
import logging
import signal
import warnings

import yaml
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from callbacks.signals import Interrupted
from lightning_alws.errors import UserError, condense, lost_process, raised_in_child
from lightning_alws.memory import memory_sentence

MENDABLE = (UserError, MisconfigurationException, OSError, yaml.YAMLError)  # by the user; others are ours to mend


def ending(error: Exception, output_option: str, debug: bool = False) -> tuple[str, int] | None:
    """The sentence that a command ends in, and its exit status; None for an error that needs its traceback.

    =================================  ======================================
    a signal, the run saved            128 plus the signal's number
    another process of the run died    1
    a mistake, a file, a full disk     2
    memory ran out                     2
    anything else, or ``debug``        None: Python's own traceback, status 1
    =================================  ======================================

    Args:
        error: what the command raised.
        output_option: the option that says where the command writes.
        debug: whether the user asked for tracebacks.
    """
    if (child := raised_in_child(error)) is not None:
        kinds = {"UserError": UserError, "MemoryError": MemoryError, "OutOfMemoryError": MemoryError}
        known = Interrupted.said(child[1]) or kinds.get(child[0], RuntimeError)(child[1])
        error = error if debug and not isinstance(known, Interrupted) else known
    if isinstance(error, Interrupted):
        return str(error), 128 + error.number
    if debug:
        return None
    if (reason := lost_process(error)) is not None:
        return (
            f"another process of this run has died ({reason}); see above what it said, or whether the system killed it "
            "for memory, and go on with --ckpt_path last."
        ), 1
    cause = user_error_within(error)
    if not isinstance(cause, UserError) and (sentence := memory_sentence(error)) is not None:
        return sentence, 2
    if not isinstance(cause, MENDABLE):
        return None
    advice = ""
    if isinstance(cause, OSError):
        advice = f"; see that {output_option} names a folder that can be written to"
        if cause.errno in (errno.ENOSPC, errno.EDQUOT):
            going_on = ", and go on with --ckpt_path last if the run has a checkpoint"
            advice = "; free some space" + (
                going_on if output_option == "--runs" else f", or give another {output_option}"
            )
    return f"{condense(str(cause))}{advice}", 2


def stopped(error: BaseException) -> tuple[str, int] | None:
    """The sentence and the exit status of a command that a signal ended on the spot; None where it ended by itself.

    Lightning turns a KeyboardInterrupt into an exit with status 1, and a SIGTERM into one with status 0.

    Args:
        error: a KeyboardInterrupt or SystemExit.
    """
    if isinstance(error, SIGTERMException):
        number = signal.SIGTERM
    elif isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        number = signal.SIGINT
    else:
        return None
    return f"stopped by {number.name} at once; what a run had saved before is whole, go on with --ckpt_path last.", (
        128 + number
    )


def user_error_within(error: BaseException) -> BaseException:
    """The UserError that an error was raised from, however deep (jsonargparse wraps those of constructors)."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def quieten() -> None:
    """Silence warnings that are not about the user's run."""
    # The loaders hold tensors on the device: worker processes would only copy them.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # Small data sets have fewer batches than the default logging interval; each config sets its own.
    warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
    # The arguments are passed on by `main` on purpose, less our own.
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    # Lightning's own use of a torch interface that is being renamed.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # Advertisements among Lightning's log lines.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(without_tips)
    # We place checkpoints where a run already has some on purpose, when it is continued.
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")


def without_tips(record: logging.LogRecord) -> bool:
    """Whether a line of the log is worth reading; a function of its own, which a logger adds once only."""
    return "Tip:" not in record.getMessage()
