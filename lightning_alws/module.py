"""What every trained latent-variable model shares, whatever the method: noise streams and averaged weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lightning_alws.errors import UserError
from lightning_alws.generative import GenerativeModel
from lightning_alws.guard import GuardedModule
from lightning_alws.noise import global_seed, reseed, seeded
from lightning_alws.penalties import Penalty

PRIMITIVES = (bool, int, float, str, type(None))
COUNTS = ("samples", "sleep_samples", "particles", "moves", "mixture")  # settings on which a step's memory depends


def is_primitive(value: Any) -> bool:
    """Whether a hyperparameter can be stored and reloaded with ``weights_only=True``."""
    if isinstance(value, dict):
        return all(is_primitive(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(is_primitive(part) for part in value)
    return isinstance(value, PRIMITIVES)


def differences(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What a stored state lacks, has too much, or has of another shape, each by the first name and how many more."""

    def listed(names: list[str]) -> str:
        return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")

    lacks, extra = [name for name in own if name not in stored], [name for name in stored if name not in own]
    shapes = [
        f"{name} has shape {tuple(stored[name].shape)} in it, but {tuple(value.shape)} in the model"
        for name, value in own.items()
        if name in stored and stored[name].shape != value.shape
    ]
    parts = [f"it lacks {listed(lacks)}"] if lacks else []
    parts += [f"it holds {listed(extra)}, which the model has not"] if extra else []
    return "; ".join(parts + ([listed(shapes)] if shapes else []))


class LatentVariableModule(GuardedModule):
    """A latent-variable model in training; the learning method is the subclass's.

    Args:
        generative: p_θ(z, x).
        averaging: decay of an exponential moving average of the model's parameters, used wherever the model is
            evaluated (0: none). The decay starts smaller, at 0 in the first step and min(averaging, (1 + t)/(10 + t))
            after t of them, so that the initial weights are forgotten.

    Attributes:
        has_likelihood: whether log p_θ(x) of the trained model means anything, so that callbacks estimate it.

    Raises:
        UserError: ``averaging`` is not in [0, 1).
    """

    has_likelihood: bool = True

    def __init__(self, generative: GenerativeModel, averaging: float = 0.0) -> None:
        super().__init__()
        if not 0 <= averaging < 1:
            raise UserError(
                f"model.learning.averaging is {averaging}; give 0 for none, or a decay below 1, such as 0.999."
            )
        self.generative = generative
        self._written_by: str | None = None  # version that wrote the checkpoint being loaded

        def average(averaged: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
            # On the device throughout: `updates` is a tensor there, and reading it would stop the device at each step.
            count = torch.as_tensor(updates, dtype=averaged.dtype, device=averaged.device)
            decay = ((1 + count) / (10 + count)).clamp_max(averaging)
            return averaged.lerp(current, 1 - decay)

        # A module of its own, not Lightning's weight averaging: that one averages the kernel too, swaps weights
        # during validation and forgets its last epoch.
        self.averaged = AveragedModel(generative, avg_fn=average).requires_grad_(False) if averaging else None

    @property
    def evaluation_model(self) -> GenerativeModel:
        """The model to evaluate and sample from: the averaged one where there is one."""
        return self.generative if self.averaged is None else cast(GenerativeModel, self.averaged.module)

    def noise(self, stream: str, index: int | None = None, shared: bool = False) -> AbstractContextManager[None]:
        """A block whose draws are seeded by (seed, stream, rank, index); the index is the batch count by default.

        Args:
            shared: leave the rank out, so that all processes draw the same.
        """
        if self._trainer is None:
            return nullcontext()
        # total_batch_idx and not global_step, which stands still under gradient accumulation.
        index = self.trainer.fit_loop.total_batch_idx if index is None else index
        rank = "all" if shared else self.global_rank
        return seeded(self.device, global_seed(), stream, rank, index)

    # For what a user's own model draws outside of such a block: the global generators follow from the batch as well, in
    # training, and in each evaluation anew. An override calls super().

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the global generators by the batch count."""
        self._reseed("train", self.trainer.fit_loop.total_batch_idx)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Seed the global generators by the number of the batch; likewise below."""
        self._reseed("validation", batch_idx)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._reseed("test", batch_idx)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._reseed("predict", batch_idx)

    def _reseed(self, stage: str, index: int) -> None:
        reseed(global_seed(), "global", stage, self.global_rank, index)

    def penalty(self, penalties: list[Penalty]) -> Tensor | float:
        """−log p(θ)/n for n training data, each penalty at its strength in this step.

        Raises:
            UserError: there are penalties, but the data module does not say how many training data it has.
        """
        if not penalties:
            return 0.0
        sizes = getattr(getattr(self.trainer, "datamodule", None), "sizes", None)
        if sizes is None:
            raise UserError(
                "penalties are given, but the data module has no attribute 'sizes' with the number of training data by "
                "which they are divided; define it, or leave the penalties out."
            )
        step = self.global_step
        return torch.stack([one.strength(step) * one(self.generative) for one in penalties]).sum() / sizes["train"]

    def too_large(self) -> str:
        """Where memory ran out, and what takes less; the end of a sentence. A method names its own counts."""
        counts = {f"model.{name}": getattr(self, name) for name in COUNTS if hasattr(self, name)}
        with_counts = " with " + " and ".join(f"{name} {count}" for name, count in counts.items()) if counts else ""
        lower = ", ".join(["the batch size", *counts])
        return (
            f"in step {self.global_step} of {type(self).__name__}{with_counts}; lower {lower} or the size of the "
            "networks."
        )

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        """Nothing: a method has no test figure of its own, the callbacks measure all models alike."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step of the optimiser, then of the averaged weights (here, so that no checkpoint falls between)."""
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            self.averaged.update_parameters(self.generative)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each parameter group by itself: a kernel's large gradient must not shrink the model's."""
        if not gradient_clip_val:
            return
        for group in optimizer.param_groups:
            if gradient_clip_algorithm == "value":
                torch.nn.utils.clip_grad_value_(group["params"], gradient_clip_val)
            else:
                torch.nn.utils.clip_grad_norm_(group["params"], gradient_clip_val)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As torch's; a UserError that says what is missing, or too much, where the state is of another model."""
        try:
            return super().load_state_dict(state_dict, *args, **kwargs)
        except RuntimeError as error:
            theirs, ours = self._written_by, version("alws")
            other = f" and alws {theirs}, which wrote it (this is {ours})" if theirs not in (None, ours) else ""
            raise UserError(
                f"the checkpoint does not fit the model ({differences(state_dict, self.state_dict())}); use the config "
                f"the run was made with (config.yaml in its folder){other}."
            ) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which version wrote it; this comes before its state is loaded."""
        super().on_load_checkpoint(checkpoint)
        self._written_by = checkpoint.get("alws_version")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep a checkpoint loadable as data: hyperparameters that are objects, as given from Python, stay out."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["alws_version"] = version("alws")
        if not is_primitive(dict(checkpoint.get("hyper_parameters", {}))):
            checkpoint.pop("hyper_parameters")
            checkpoint.pop("hparams_name", None)
