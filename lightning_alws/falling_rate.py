"""A learning rate that falls geometrically until the trainer's last step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_lightning.utilities import rank_zero_warn


def falling_rate(
    optimiser: torch.optim.Optimizer, group: str, ratio: float, steps: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule that multiplies the rate of one group by 1 in the first step and by ``ratio`` in the last.

    Args:
        optimiser: whose groups have names; the rates of the others stay.
        group: the name.
        ratio: of the last rate to the first, positive.
        steps: of the whole training, finite.
    """

    def falling(step: int) -> float:
        return ratio ** min(step / max(steps - 1, 1), 1.0)

    def constant(step: int) -> float:
        return 1.0

    rates: list[Callable[[int], float]] = [
        falling if one["name"] == group else constant for one in optimiser.param_groups
    ]
    return torch.optim.lr_scheduler.LambdaLR(optimiser, rates)


def warn_of_another_end(before: float, now: float) -> None:
    """Warn where a resumed run falls until another step than it did: it is then none that was never cut."""
    if now != before:
        rank_zero_warn(
            f"model.learning.final_learning_rate is now reached in step {now}, but was to be in step {before} when "
            "the checkpoint was written (trainer.max_steps): the rate jumps, and the run is not the one that a "
            "single session would have been."
        )
