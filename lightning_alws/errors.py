"""The one exception for mistakes a user can mend, and others' messages made fit to be read."""

from __future__ import annotations

import re

import torch
from torch.multiprocessing import ProcessRaisedException


def printable(text: object, kept: str = "") -> str:
    r"""A text fit for a terminal and a file: what cannot be printed is escaped as in Python, as ``\n`` or ``\x1b``.

    Names of files may hold anything: line breaks, a terminal's commands, bytes that are no UTF-8.

    Args:
        text: or what has one, such as a path.
        kept: characters that stay as they are.
    """
    return "".join(
        letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


class UserError(Exception):
    """A mistake in a setting, a file or a command line.

    The message is one sentence (or two) that says what is wrong, which argument has which value, and what to do.
    The command line prints it without a traceback and exits with status 2. What a name in it hides from the eye is
    escaped (:func:`printable`), except for line breaks and tabs, which others' messages have.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, kept="\n\t"))


def check_at_least(section: str, **limits: tuple[float, float]) -> None:
    """Raise a UserError for the first setting that is below what it may be.

    Args:
        section: the settings' name on the command line, such as ``fid_kid``.
        limits: (value, least value) of each setting, by name.
    """
    for name, (value, least) in limits.items():
        if not value >= least:
            raise UserError(f"{section}.{name} is {value}; give at least {least}.")


def condense(message: str) -> str:
    """A parser's message of many lines as one sentence, without what only a developer reads.

    jsonargparse reports each type it tried, one a line behind "- "; the last of them, None, says nothing.
    """
    if "Got value" not in message and "dot import path" not in message:  # else the value is named already
        message = re.sub(r"(?m)^\s*Given value: (?!NestedArg)(\S{1,40})$", r"- Got value: \1", message)
    message = re.sub(r"(?m)^\s*(Given value.*|- Expected (a )?(<class ')?NoneType.*|Subtypes:.*|Errors:)$", "", message)
    message = re.sub(r"(?m)^\s*- Expected a path but .*$", "", message)
    message = message.replace("Does not validate against any of the Union subtypes", "")
    message = re.sub(
        r"Expected a dot import path string: (\S+)",
        r"there is no class named \1; see --help for those there are",
        message,
    )
    message = re.sub(r"<class '([^']+)'>", r"\1", message)
    message = re.sub(r"NestedArg\(key='([^']*)', val='([^']*)'\)", r"\1: \2", message)
    advice = "; see alws fit --help for those there are"  # once: messages pass here again on their way out
    message = re.sub(rf"(Option '[^']+' is not accepted)(?!{advice})", rf"\1{advice}", message)
    message = re.sub(
        r"Unexpected config:\s*$", "a config holds no settings; write some, or give one of configs/ instead", message
    )
    message = re.sub(
        r"(?s)Unexpected config:\s*(\S.*)$",
        r"a config must hold settings by name, as those in configs/ do, but is: \1",
        message,
    )
    text = re.sub(r"\s+", " ", re.sub(r"(?m)^\s*- ", "", message)).strip()
    text = re.sub(r"(Expected a \w+) (?=Expected a )", r"\1 or ", text)
    text = re.sub(r"(?<![.;]) Got value: ", ". Got value: ", text)
    return text if len(text) <= 600 else text[:600] + " …"


def lost_process(error: BaseException) -> str | None:
    """What the network said if an error means that another process of the run has died; None if it means no such thing.

    Gloo raises plain RuntimeErrors that name its own source files; NCCL and the stores have classes of their own.
    """
    cause: BaseException | None = error
    while cause is not None:
        text = condense(str(cause))
        network = isinstance(cause, torch.distributed.DistError) or "gloo/transport" in text
        if isinstance(cause, RuntimeError) and network:
            return re.sub(r"^\[\S+\] ?", "", text).split(". ")[0].rstrip(".")  # the first sentence; then comes advice
        cause = cause.__cause__ or cause.__context__
    return None


def raised_in_child(error: BaseException) -> tuple[str, str] | None:
    """(class, first line) of what a forked or spawned process of the run raised; None for an error of this process.

    Of the child's exception only its printed traceback arrives here.
    """
    if not isinstance(error, ProcessRaisedException):
        return None
    traceback = str(error).rpartition("Traceback (most recent call last):")[2]
    said = re.search(r"(?m)^(\w[\w.]*)(?:: (.*))?$", traceback)
    return (said[1].rpartition(".")[2], said[2] or "") if said else ("ProcessRaisedException", "")
