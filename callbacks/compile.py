"""``--compile.networks true``: torch.compile for the networks, decoders and encoders, critics and kernel features.

What is compiled are the chains of layers (``nn.Sequential``), outermost ones, of the module in training; linear
algebra, likelihoods and random draws are left as they are, and so are averaged weights. Compiled in place, a network
keeps its parameters' names: checkpoints, exported weights and resumed runs do not know of it. Numbers differ by
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributions import Distribution

from lightning_alws.errors import UserError, condense

VARIANTS = 64  # torch counts those of all networks together, and beyond its own limit of 8 compiles no more, silently


class Compile(pl.Callback):
    """Compiles the networks at the start of a fit; the first steps, in which torch does so, take up to a minute.

    Args:
        networks: whether to.
        backend: torch's name for what compiles.

    Raises:
        UserError: torch cannot compile here.
    """

    def __init__(self, networks: bool = False, backend: str = "inductor") -> None:
        self.networks, self.backend = networks, backend

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Compile, once torch has shown with a layer of its own that it can."""
        if not self.networks or stage != "fit":
            return
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
        self._try(trainer.strategy.root_device)
        for network in chains(pl_module):
            network.compile(backend=self.backend)

    def _try(self, device: torch.device) -> None:
        layer = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).to(device)
        validates = Distribution._validate_args
        try:
            layer.compile(backend=self.backend)
            with torch.enable_grad():
                layer(torch.zeros(3, 2, device=device)).sum().backward()
        except Exception as error:  # each backend has errors of its own
            first = condense(str(error)).splitlines()[0].rstrip(".")
            raise UserError(
                f"compile.networks is true, but torch cannot compile with compile.backend '{self.backend}' here "
                f"({first}); install what it needs, on a CPU a C++ compiler, or leave compile.networks false."
            ) from error
        finally:  # torch turns the checks of distributions off for good when it first compiles
            Distribution.set_default_validate_args(validates)


def chains(module: nn.Module) -> Iterator[nn.Sequential]:
    """The outermost chains of layers that are in training, averaged copies apart."""
    for name, child in module.named_children():
        if name == "averaged":
            continue
        if isinstance(child, nn.Sequential):
            yield child
        else:
            yield from chains(child)
