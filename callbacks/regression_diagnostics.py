"""How good the regression is during training, and warnings before it goes wrong."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch import Tensor

from lightning_alws.errors import check_at_least
from lightning_alws.generative import PlugIn, Sleep
from lightning_alws.learning import AmortisedLearning
from lightning_alws.likelihoods import Gaussian
from lightning_alws.regression import FittedRidge
from lightning_alws.residual import ResidualPlugIn

NEGATIVE_SHARE_WARNING = 0.5


class RegressionDiagnostics(Callback):
    """Logs, from fresh sleep samples, figures of the regression under ``regression/``:

    * ``held_out_error``: squared error of the predicted log p_θ(z, x) on held-out sleep samples, over its variance
      (1 is no better than predicting the mean; below 0 it cannot fall; the floor is what x does not determine);
    * ``held_out_bias``: the mean of that prediction less the truth's, in nats. The sleep-centred gradient lowers the
      prediction at the model's own samples; on binarised MNIST about -130 was without harm under a fixed kernel,
      -330 came before a collapse under a trained one, against which a smaller ``centring`` helped;
    * ``weight_sum`` and ``weight_l1``: Σ_n W_n* and Σ_n |W_n*| averaged over the wake batch;
    * ``effective_samples``: (Σ_n |W_n*|)² / Σ_n W_n*², the number of sleep samples that a prediction rests on;
    * ``bandwidth``, ``ridge``, ``jitter`` (what had to be added to the ridge), ``skipped`` (steps, so far);
    * ``negative_residual_share``, for Gaussian likelihoods regressed as they are, not as residuals of a reference: the
      share of wake images with Σ_n W_n*‖x* − μ_n‖² < 0, for which the plug-in objective grows without bound as σ falls.
      Warns once above one half. And ``noise_scale``, σ.

    Args:
        every_n_steps: how often; each time costs about one training step without its backward pass.

    Raises:
        UserError: ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        check_at_least("diagnostics", every_n_steps=(every_n_steps, 1))
        self.every_n_steps = every_n_steps
        self._warned = False
        self._last_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure after the first step of this session at the earliest."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, every so many steps."""
        step = trainer.global_step
        # The step stands still over the batches whose gradients are accumulated.
        if not isinstance(pl_module, AmortisedLearning) or step % self.every_n_steps or step == self._last_step:
            return
        self._last_step = step
        with torch.no_grad():
            count, held_out = pl_module.learning.sleep_samples, pl_module.learning.held_out
            samples = pl_module.draw(count + held_out, "diagnostics")
            fitted = pl_module.regression.fit(samples[:count].x)
            if fitted.failure is None:
                figures = self.figures(fitted, samples[:count], samples[count:], pl_module.observe(batch))
                for name, value in figures.items():
                    pl_module.log(f"regression/{name}", value, prog_bar=name == "held_out_error")
                self._warn(figures)
            pl_module.log("regression/ridge", pl_module.regression.ridge)
            pl_module.log("regression/bandwidth", pl_module.regression.kernel.bandwidth)
            pl_module.log("regression/jitter", fitted.factor.jitter)
            pl_module.log("regression/skipped", float(pl_module.skipped_total))

    @staticmethod
    def figures(fitted: FittedRidge, sleep: Sleep, held_out: Sleep, wake: Tensor) -> dict[str, Tensor]:
        """The figures, for N sleep samples, held-out ones and wake observations (B, *event)."""
        predicted, truth = sleep.joint.expectation(fitted.weights(held_out.x), held_out.x), held_out.joint.log_joint
        weights = fitted.weights(wake)
        absolute = weights.abs().sum(0)
        figures = {
            "held_out_error": (predicted - truth).square().mean() / truth.var(),
            "held_out_bias": (predicted - truth).mean(),
            "weight_sum": weights.sum(0).mean(),
            "weight_l1": absolute.mean(),
            "effective_samples": (absolute.square() / weights.square().sum(0)).mean(),
        }
        if isinstance(sleep.joint, PlugIn) and isinstance(sleep.joint.likelihood, Gaussian):
            # In residual form the objective is another, of which Σ W‖x* − μ‖² is no part.
            if not isinstance(sleep.joint, ResidualPlugIn):
                reconstruction, variance = sleep.joint.likelihood.residual(weights, wake)
                figures["negative_residual_share"] = (reconstruction + variance < 0).float().mean()
            figures["noise_scale"] = sleep.joint.likelihood.log_scale.exp()
        return figures

    def _warn(self, figures: dict[str, Tensor]) -> None:
        share = figures.get("negative_residual_share")
        if share is None or self._warned or not share > NEGATIVE_SHARE_WARNING:
            return
        self._warned = True
        pl.utilities.rank_zero_warn(
            f"the regression predicts a negative squared residual for {float(share):.0%} of the wake images, so that "
            "the noise scale can no longer be learnt from it; raise model.learning.regression.ridge or "
            "model.learning.sleep_samples, or give the noise scale a floor."
        )
