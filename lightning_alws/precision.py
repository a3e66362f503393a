"""What keeps the regression in float32 where the networks run in less.

A Gram matrix made with autocast or TensorFloat-32 is 10-100 % wrong where the mean is 10 σ away. Predictions suffer as
well: Σ_n W_n Ψ(z_n) has weights of either sign and, for images, values of hundreds of nats, which bfloat16 rounds to
within two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where autocast has lowered it."""
    return tensor.float() if tensor.dtype in HALF else tensor


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast and TensorFloat-32 off inside, on the device of that kind; afterwards as before."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, cast(Any, torch.backends.mkldnn).matmul)
    given = [backend.fp32_precision for backend in backends]
    before: str | None = None
    # It raises where one of the backends was set by itself, as torch's documentation has it now.
    with suppress(RuntimeError):
        before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before is not None:
            torch.set_float32_matmul_precision(before)
        for backend, precision in zip(backends, given, strict=True):
            backend.fp32_precision = precision
