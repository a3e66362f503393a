"""What is said when memory runs out, in a step or elsewhere: how large things were, and which settings need less."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import pytorch_lightning as pl
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


def installed(device: torch.device) -> int | None:
    """Bytes of memory that a device has in all, used or not; for a CPU the machine's; None where no system tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # another system than Unix, or one without these names
        return None


def asked_for(error: BaseException) -> str:
    """How much memory was asked for in vain, with a space before it; empty where the error does not tell."""
    found = re.search(r"(?i)(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error))
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


def memory_sentence(error: BaseException) -> str | None:
    """The sentence for an error that memory ran out, wherever it did; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        if out_of_memory(cause):
            return f"memory ran out{asked_for(cause)} {_where(cause)}"
        cause = cause.__cause__ or cause.__context__
    return None


def _where(error: BaseException) -> str:
    """The sentence's end: of the callback, or else the model or the data, in whose method memory ran out."""
    owners: list[Any] = []  # the objects whose methods were at work, outermost first
    frame = error.__traceback__
    while frame is not None:
        owners.append(frame.tb_frame.f_locals.get("self"))
        frame = frame.tb_next
    # A callback that calls the model comes before it: its counts are at fault. Of several methods of a model, the last.
    kinds: list[tuple[type, list[Any]]] = [
        (pl.Callback, owners),
        (pl.LightningModule, owners[::-1]),
        (pl.LightningDataModule, owners),
    ]
    for kind, found in kinds:
        owner: Any = next((one for one in found if isinstance(one, kind)), None)
        if owner is not None:
            try:
                return owner.too_large()
            except AttributeError:  # it has none, or is only being made
                return _in_general(owner)
    return "in this command; lower the batch size, the counts of samples or the size of the networks."


def _in_general(owner: Any) -> str:
    name = type(owner).__name__
    if isinstance(owner, pl.Callback):
        return f"in the callback {name}; lower what it counts or draws, or leave it out."
    if isinstance(owner, pl.LightningDataModule):
        return f"in the data {name}; give fewer or smaller data, or a machine with more memory."
    return f"in the model {name}; lower the batch size, its counts of samples or the size of its networks."
