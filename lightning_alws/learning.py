"""Amortised learning by wake-sleep: the four steps of one batch.

    sleep     z_n, x_n ~ p_θ                                 (x_n without gradient)
    regress   W = (K + λI)⁻¹ k(x_n, x*)                      (one Cholesky factorisation)
    wake      Ĵ(x*) = Σ_n W_n* log p_θ(z_n, x*)              (gradient through log p_θ only)
    update    θ ← Adam(−mean Ĵ(x*)), a consistent estimate of ∇_θ log p_θ(x*)

Source: Wenliang, Moskovitz, Kanagawa, Sahani, "Amortised Learning by Wake-Sleep", ICML 2020, Algorithm 1.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_alws.chunks import check_chunks, sleep_in_chunks
from lightning_alws.contract import check_data, check_model
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.falling_rate import falling_rate, warn_of_another_end
from lightning_alws.generative import GenerativeModel, Sleep
from lightning_alws.kernels import ModelFeatures
from lightning_alws.likelihoods import TensorMap
from lightning_alws.memory import installed, names_memory
from lightning_alws.module import LatentVariableModule
from lightning_alws.objectives import KernelObjective
from lightning_alws.penalties import Penalty
from lightning_alws.pooled import collect, share
from lightning_alws.posterior import AmortisedPosterior
from lightning_alws.regression import FittedRidge, KernelRidge, freeze
from lightning_alws.scope import Scope, scope_named

INITIAL_SAMPLES = 2000  # sleep samples of the initial model for the median rule, as published


@dataclass(frozen=True)
class Learning:
    """Settings of amortised learning that every model shares.

    Args:
        sleep_samples: N, sleep samples the regression is fitted on in each step.
        held_out: N_v, further sleep samples, for the kernel's objective and the sleep-centred gradient; drawn only
            where one of the two needs them.
        regression: builds the ridge regression from the shape of one observation.
        kernel_objective: what kernel and ridge are trained for (AL-A); without one they are fixed (AL-F).
        centring: how much of the mean predicted gradient over held-out sleep samples to subtract (AL-C), from 0, none,
            to 1, all. Since E[∇_θ log p_θ(x)] = 0 over x ~ p_θ, that mean is pure regression error, and where the model
            fits the data the bias cancels; the estimate is consistent with any share. A smaller one leaves more of the
            bias and takes in less noise; where the kernel is trained, it kept models from a collapse (README).
        mode: regress the natural parameters and put x* in exactly ("plug-in"), or log p_θ(z_n, x_n) itself ("direct");
            "auto" is plug-in wherever the model has natural parameters.
        learning_rate: Adam's for the model, in the first step.
        final_learning_rate: Adam's for the model in the last step of the trainer, towards which the rate falls
            geometrically; None for a constant rate.
        kernel_learning_rate: Adam's for the kernel and the ridge.
        penalties: log priors on the model's parameters, −log p(θ) each; added to the loss divided by the number of
            training data, of which the data module's ``sizes["train"]`` tells.
        averaging: decay of the averaged weights used for evaluation; 0 for none.
        max_skipped: consecutive steps that may be skipped, because the regression failed or the gradient is not finite,
            before the run stops; with 0 it stops at the first.
        chunk: sleep samples that pass through the generator at a time, which bounds memory; None for all N at once. The
            gradient is the same, but takes two to three times as many passes through the generator.
        regression_scope: under DDP, whether each process regresses on its own N samples ("rank"), or all do on those of
            all together, as one process with as many would ("global"); see :mod:`lightning_alws.scope`. What is fitted
            for one process alone, as a posterior or a diagnosis, is always of its own samples.
    """

    sleep_samples: int = 2000
    held_out: int = 200
    regression: Callable[[tuple[int, ...]], KernelRidge] = KernelRidge
    kernel_objective: KernelObjective | None = None
    centring: float = 0.0
    mode: Literal["plug-in", "direct", "auto"] = "auto"
    learning_rate: float = 1e-3
    final_learning_rate: float | None = None
    kernel_learning_rate: float = 1e-3
    penalties: list[Penalty] = field(default_factory=list)
    averaging: float = 0.0
    max_skipped: int = 20
    chunk: int | None = None
    regression_scope: Literal["rank", "global"] = "rank"

    @property
    def held_out_drawn(self) -> int:
        """How many held-out samples a training step draws."""
        return self.held_out if self.kernel_objective is not None or self.centring else 0

    def check(self) -> None:
        """Raise a UserError that names the setting which makes no sense."""
        if self.sleep_samples < 2:
            raise UserError(
                f"model.learning.sleep_samples is {self.sleep_samples}; a regression needs at least 2, and some "
                "hundreds to be of use."
            )
        if self.held_out < 2:
            raise UserError(f"model.learning.held_out is {self.held_out}; give at least 2, such as 200.")
        if not 0 <= self.centring <= 1:
            raise UserError(
                f"model.learning.centring is {self.centring}; give a share from 0 (no centring) to 1 (all of it)."
            )
        check_at_least("model.learning", max_skipped=(self.max_skipped, 0))
        if self.regression_scope not in ("rank", "global"):
            raise UserError(f"model.learning.regression_scope is {self.regression_scope!r}; give 'rank' or 'global'.")
        if self.chunk is not None:
            check_at_least("model.learning", chunk=(self.chunk, 1))
        for name in ("learning_rate", "final_learning_rate", "kernel_learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"model.learning.{name} is {value}; give a positive number, such as 0.001.")


class SkipStep(Exception):
    """This batch cannot be learnt from; raised on all ranks alike."""


def skips_on_failure(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Turn a SkipStep into a step that moves nothing, on every rank alike, and stop after too many of them."""

    @functools.wraps(step)
    def wrapped(self: AmortisedLearning, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return step(self, *args, **kwargs)
        except SkipStep as skip:
            return self.skip(str(skip))

    return wrapped


class AmortisedLearning(LatentVariableModule):
    """Trains a latent-variable model by amortised learning.

    Under DDP every rank draws its own sleep samples and fits its own regression on them; the gradients are averaged.
    The regression's bias is therefore that of N samples, whatever the number of ranks; with ``regression_scope`` global
    it is that of all ranks' samples.

    Args:
        generative: p_θ(z) p_θ(x|z).
        learning: the settings.

    Attributes:
        pools: whether the samples of several ranks may be pooled; not where they depend on the rank's batch.
        scope: whose samples a training step's regression is fitted on.

    Raises:
        UserError: a setting makes no sense.
    """

    pools: bool = True
    advice = "raise model.learning.regression.ridge, or lower model.learning.learning_rate"

    def __init__(self, generative: GenerativeModel, learning: Learning) -> None:
        super().__init__(generative, learning.averaging)
        learning.check()
        self.learning = learning
        self.direct = learning.mode == "direct" or (learning.mode == "auto" and generative.direct_only)
        check_model(generative, self.direct, learning.penalties)
        if learning.chunk is not None:
            check_chunks(generative, self.direct)
        if learning.regression_scope == "global":
            self._check_pooling()
        self.scope = Scope()
        with torch.no_grad():
            x = self._sleep(generative, INITIAL_SAMPLES).x
        self.regression = learning.regression(tuple(x.shape[1:])).to(x.dtype)
        for features in self.regression.modules():
            if isinstance(features, ModelFeatures):
                features.attach(generative)
        self.regression.initialise(x)
        if learning.kernel_objective is None:
            freeze(self.regression)
        if type(self) is AmortisedLearning:  # a subclass saves its own
            with warnings.catch_warnings():
                # Lightning's advice to ignore a module made in Python; no checkpoint of ours keeps such settings.
                warnings.filterwarnings("ignore", message="Attribute 'generative' is an instance of `nn.Module`")
                self.save_hyperparameters()
        self.max_skipped = learning.max_skipped
        self._unchecked = True

    @skips_on_failure
    @names_memory
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The four steps for a batch of real data."""
        x = self.scope.gather(self.observe(batch), even=False)
        sleep, held_out = self.sleep()
        regression = self.regress(sleep, x)
        expectation = self.wake(regression, sleep, x)
        return self.update(expectation, regression, sleep, held_out)

    @names_memory
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        super().backward(loss, *args, **kwargs)

    def too_large(self) -> str:
        """How many samples a step has, and what takes less memory."""
        count, chunk = self.learning.sleep_samples, self.learning.chunk
        pooled = f", pooled over {self.scope.ranks} processes" if self.scope.ranks > 1 else ""
        if chunk is None or chunk > count:
            advice = f"set model.learning.chunk, such as {max(count // 10, 1)}, which bounds the generator's memory"
        else:
            advice = "lower model.learning.chunk"
        if self.regression.most_pooled is not None:
            name = type(self.regression).__name__
            advice += f", choose RandomFeatureRidge for model.learning.regression ({name} keeps an N × N matrix)"
        sizes = {"held_out": self.learning.held_out_drawn}
        if name := self.regression.sized_by:
            sizes[f"regression.{name}"] = getattr(self.regression, name)
        for name, size in sizes.items():
            if size > count:
                advice = f"lower model.learning.{name} ({size}), {advice}"
        return (
            f"in step {self.global_step} with model.learning.sleep_samples {count}{pooled}, and "
            f"model.learning.chunk {'not set' if chunk is None else chunk}; {advice}, or lower sleep_samples or the "
            "batch size."
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.regression.at_step(self.global_step)
        if self._unchecked:
            check_data(self.generative, self.observe(batch), self.direct)
            self._unchecked = False
        # Last: the check draws, but before the first batch alone.
        super().on_train_batch_start(batch, batch_idx)

    def observe(self, batch: Any) -> Tensor:
        """The observations x* (B, *event) of a batch; a model given a context (inputs, a mask) takes it in here."""
        return batch

    def sleep(self) -> tuple[Sleep, Sleep]:
        """Draw z_n, x_n ~ p_θ: N samples to fit on, and the held-out ones, through which no gradient ever goes."""
        sleep, count = self.draw(self.learning.sleep_samples, "sleep"), self.learning.held_out_drawn
        if not count:
            return share(sleep, self.scope), sleep[:0]
        # Apart: in one pass with the others the backward pass would go through them too, for nothing.
        with torch.no_grad():
            return share(sleep, self.scope), collect(self.draw(count, "held_out"), self.scope)

    def regress(self, sleep: Sleep, x: Tensor | None = None) -> FittedRidge:
        """Factorise K + λI of the sleep observations, for real data x if given; if any rank cannot, all skip."""
        fitted = self.regression.fit_pooled(sleep.x, x, self.scope)
        if self.any_rank(fitted.failure is not None):
            raise SkipStep(fitted.failure or "the regression failed on another rank")
        return fitted

    def wake(self, regression: FittedRidge, sleep: Sleep, x: Tensor) -> Tensor:
        """Ĵ(x*) = Σ_n W_n* log p_θ(z_n, x*) for real data x (B, *event), shape (B,)."""
        with torch.no_grad():
            weights = regression.weights(x)
        return sleep.joint.expectation(weights, x)

    def update(self, expectation: Tensor, regression: FittedRidge, sleep: Sleep, held_out: Sleep) -> Tensor:
        """The loss: −mean Ĵ(x*) − log p(θ)/n, with the centring and the kernel's own objective where chosen."""
        self.log("train/objective", expectation.detach().mean(), prog_bar=True)
        loss = self.penalty(self.learning.penalties) - expectation.mean()
        if not len(held_out):
            return loss
        weights = regression.weights(held_out.x)
        if self.learning.centring:
            away = sleep.joint.expectation(weights.detach(), held_out.x).mean()
            loss = loss + self.learning.centring * away
        if self.learning.kernel_objective is not None:
            kernel_loss = self.learning.kernel_objective(weights, sleep, held_out)
            self.log("train/kernel_loss", kernel_loss.detach())
            loss = loss + kernel_loss
        return loss

    def draw(self, count: int, stream: str, index: int | None = None) -> Sleep:
        """``count`` sleep samples of the model in training, from a noise stream of their own."""
        with self.noise(stream, index):
            return self._sleep(self.generative, count)

    def _sleep(self, model: GenerativeModel, count: int) -> Sleep:
        if self.learning.chunk is None or count <= self.learning.chunk:
            return model.sleep(count, direct=self.direct)
        return sleep_in_chunks(model, count, self.learning.chunk, self.direct)

    @names_memory
    def on_validation_epoch_start(self) -> None:
        with torch.no_grad():
            sleep = share(self.draw(self.learning.sleep_samples, "validation", 0), self.scope)
            regression = self.regression.fit_pooled(sleep.x, None, self.scope)
        # Decided once for all ranks: logging is collective.
        self._validation = None if self.any_rank(regression.failure is not None) else (sleep, regression)

    @names_memory
    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        if self._validation is not None:
            sleep, regression = self._validation
            expectation = self.wake(regression, sleep, self.scope.gather(x, even=False))
            self.log("val/objective", expectation.mean(), sync_dist=True, batch_size=len(x))

    def on_validation_epoch_end(self) -> None:
        del self._validation

    @torch.no_grad()
    def amortised_posterior(
        self, x: Tensor, index: int = 0, sleep_samples: int | None = None, corrupt: TensorMap | None = None
    ) -> AmortisedPosterior:
        """Weights that give E[f(z)|x] for observations x (B, *event) and any f, from fresh sleep samples.

        Args:
            x: observations.
            index: of the noise.
            sleep_samples: N, by default as many as in training.
            corrupt: a random map of observations (N, *event), applied to those of the sleep samples before the
                regression is fitted on them: the weights are then those of p(z|corrupted x), for x so corrupted.

        Raises:
            UserError: the regression failed.
        """
        with self.noise("posterior", index):
            sleep = self._sleep(self.evaluation_model, sleep_samples or self.learning.sleep_samples)
            fitted = self.regression.fit(sleep.x if corrupt is None else corrupt(sleep.x))
        if fitted.failure is not None:
            raise UserError(
                f"the posterior cannot be computed because {fitted.failure}; raise model.learning.regression.ridge."
            )
        return AmortisedPosterior(sleep, fitted.weights(x))

    def predict_step(self, batch: Any, batch_idx: int) -> AmortisedPosterior:
        """The amortised posterior of a batch of observations."""
        return self.amortised_posterior(self.observe(batch), batch_idx)

    def setup(self, stage: str) -> None:
        """Take the scope; raise a UserError for a precision, or a number of samples, that no Gram matrix can have."""
        if self.trainer.precision in ("16-true", "bf16-true"):
            raise UserError(
                f"trainer.precision is {self.trainer.precision}, in which no Gram matrix can be factorised; give "
                f"{self.trainer.precision.replace('true', 'mixed')}, which keeps the regression in float32, or 32-true."
            )
        self.scope = scope_named(self.learning.regression_scope)
        if self.scope.ranks > 1:
            self.regression.check_pooled(self.learning.sleep_samples, self.scope.ranks)
        if self.regression.most_pooled is not None:
            self._check_memory(installed(self.trainer.strategy.root_device))

    def _check_memory(self, there: int | None) -> None:
        """Raise a UserError where N × N matrices need more than all memory: Linux would kill the run without a word."""
        count = self.learning.sleep_samples * self.scope.ranks
        needed = 2 * count**2 * self.regression.log_ridge.element_size()  # the Gram matrix and its factor
        if there is not None and needed > there:
            raise UserError(
                f"model.learning.sleep_samples is {self.learning.sleep_samples}, and the Gram matrix of {count} sleep "
                f"samples and its factor take {needed / 2**30:.3g} GiB, more than the {there / 2**30:.3g} GiB that "
                "there are; lower it, or choose NystromRidge or RandomFeatureRidge for model.learning.regression."
            )

    def _check_pooling(self) -> None:
        objective = self.learning.kernel_objective
        reasons = {
            f"the sleep samples of {type(self).__name__} depend on each process's batch": not self.pools,
            f"{type(objective).__name__} sums over the samples of one process": objective and not objective.pools,
        }
        for reason, applies in reasons.items():
            if applies:
                raise UserError(f"model.learning.regression_scope is 'global', but {reason}; set it to 'rank'.")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the step until which the learning rate falls."""
        super().on_save_checkpoint(checkpoint)
        if self.learning.final_learning_rate is not None and self._trainer is not None:
            checkpoint["falls_until"] = self.trainer.estimated_stepping_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Warn where the rate would now fall until another step."""
        super().on_load_checkpoint(checkpoint)
        before = checkpoint.get("falls_until")
        if before is not None and self._trainer is not None and self.trainer.state.fn == "fit":
            warn_of_another_end(before, self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam, one group for the model and one for kernel and ridge where they are trained.

        Raises:
            UserError: the rate is to fall until a last step, but the trainer has none.
        """
        groups = [
            {"params": [*self.generative.parameters()], "lr": self.learning.learning_rate, "name": "model"},
            {"params": [*self.regression.parameters()], "lr": self.learning.kernel_learning_rate, "name": "kernel"},
        ]
        optimiser = torch.optim.Adam([group for group in groups if group["params"]])
        if self.learning.final_learning_rate is None:
            return optimiser
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise UserError(
                "model.learning.final_learning_rate is given, but the trainer has no last step; set trainer.max_steps."
            )
        ratio = self.learning.final_learning_rate / self.learning.learning_rate
        schedule = falling_rate(optimiser, "model", ratio, steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
