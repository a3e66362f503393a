"""What is said when memory runs out in a step: how many samples there were, and which settings need less."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from lightning_alws.errors import UserError

Result = TypeVar("Result")
# What torch's allocator on a CPU and the linear algebra libraries of a GPU say; they raise plain RuntimeErrors.
SAID = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")


class Describes(Protocol):
    """What knows how large its steps are."""

    def too_large(self) -> str:
        """The sentence's end: what the step's size was, and what to set."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a device or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in SAID)


def asked_for(error: BaseException) -> str:
    """How much memory was asked for in vain, with a space before it; empty where the error does not tell."""
    found = re.search(r"(?i)tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error))
    if found is None:
        return ""
    if found[2] != "bytes":
        return f" ({found[1]} {found[2]} more were asked for)"
    return f" ({float(found[1]) / 2**30:.3g} GiB more were asked for)"


def names_memory(method: Callable[..., Result]) -> Callable[..., Result]:
    """Turn a method's running out of memory into a UserError that names the settings."""

    @functools.wraps(method)
    def wrapped(self: Describes, *args: Any, **kwargs: Any) -> Result:
        try:
            return method(self, *args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(f"memory ran out{asked_for(error)} {self.too_large()}") from error

    return wrapped
