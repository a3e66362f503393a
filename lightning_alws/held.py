"""Parameters that are constants for a while: what one part of a loss must not teach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """A block in which a module's parameters are constants; gradients still pass through to its inputs."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
