"""What keeps a training from learning from numbers that are none: a step with a NaN is skipped, said and counted."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_alws.errors import UserError


class GuardedModule(pl.LightningModule):
    """A module whose optimiser never takes a step with a gradient that is not finite.

    The gradient is looked at after the ranks' own have been averaged, NaN and all, so that every rank decides alike; it
    is dropped, not set to zero, which would still move Adam.

    Attributes:
        max_skipped: consecutive steps that may be skipped before the run stops; 0 stops at the first.
        skipped_total: steps skipped so far, over all sessions of the run.
        advice: what to do when the run stops for too many of them.
    """

    max_skipped: int = 20
    advice: str = "lower model.learning_rate"

    def __init__(self) -> None:
        super().__init__()
        self.skipped_total = 0
        self.skipped_in_a_row = 0
        self._gradients_are_real = False  # some batch since the last step was learnt from
        self._batch_is_skipped = False
        self._dropped_in: int | None = None  # the last batch in which a gradient was dropped
        self._loss: Tensor | None = None

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; no rank may raise or skip alone, or the others wait for it for ever."""
        if self._trainer is None or self.trainer.world_size == 1:
            return flag
        return bool(self.trainer.strategy.reduce(torch.tensor(float(flag), device=self.device), reduce_op="sum"))

    def skip(self, reason: str) -> Tensor:
        """Count a batch that cannot be learnt from, on all ranks alike, and give the loss that moves nothing.

        Raises:
            UserError: too many in a row were skipped.
        """
        self._batch_is_skipped = True
        self._count_skip(reason)
        return parameter_sum(self)

    def _count_skip(self, reason: str) -> None:
        self.skipped_total += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.max_skipped:
            many = "1 step was" if self.skipped_in_a_row == 1 else f"{self.skipped_in_a_row} steps in a row were"
            raise UserError(f"{many} skipped (step {self.global_step} because {reason}); {self.advice}.")
        pl.utilities.rank_zero_warn(f"step {self.global_step} skipped: {reason}.")

    def on_before_backward(self, loss: Tensor) -> None:
        """Note whether there is anything to learn from this batch, and the loss, to name it if it is not finite."""
        if not self._batch_is_skipped:
            self._gradients_are_real = True
            self._loss = loss.detach()
        self._batch_is_skipped = False

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """After skipped batches only, or with a gradient that is not finite, drop it.

        Of several steps in one batch, as a critic takes, those that are dropped count as one, and a last good one does
        not end the row.
        """
        gradients = self._gradients(optimizer)
        if self._gradients_are_real and not is_finite(list(gradients.values())):
            if not self._dropped_before():
                self._count_skip(self._what_is_not_finite(gradients))
            self._dropped_in = self.trainer.fit_loop.total_batch_idx
            self._gradients_are_real = False
        if not self._gradients_are_real:
            optimizer.zero_grad(set_to_none=True)
        elif not self._dropped_before():
            self.skipped_in_a_row = 0
        self._gradients_are_real = False
        self._loss = None

    def _dropped_before(self) -> bool:
        """Whether another step of this batch was dropped."""
        return self._dropped_in is not None and self._dropped_in == self.trainer.fit_loop.total_batch_idx

    def _gradients(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Gradients of what the optimiser steps, by name."""
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        named = self.named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None and id(p) in stepped}

    def _what_is_not_finite(self, gradients: dict[str, Tensor]) -> str:
        if self._loss is not None and not is_finite([self._loss]):
            return f"the loss is {float(self._loss)}"
        name = next(name for name, gradient in gradients.items() if not is_finite([gradient]))
        kind = "a NaN" if gradients[name].isnan().any() else "an infinity"
        return f"the gradient of {name} holds {kind}"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of skipped steps."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["skipped_total"] = self.skipped_total

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the count of skipped steps."""
        super().on_load_checkpoint(checkpoint)
        self.skipped_total = checkpoint.get("skipped_total", 0)


def is_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers of some tensors are; one host read."""
    if not tensors:
        return True
    return bool(torch.isfinite(torch.stack(torch._foreach_norm(tensors))).all())


def parameter_sum(module: torch.nn.Module) -> Tensor:
    """0·Σθ over the trained parameters: a loss that reaches every parameter and moves none."""
    return sum((parameter.sum() * 0 for parameter in module.parameters() if parameter.requires_grad), torch.zeros(()))
