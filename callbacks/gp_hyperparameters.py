"""A Gaussian process's learnt hyperparameters beside the truth and exact maximum likelihood, and its posterior mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from callbacks.history import FigureWithHistory
from lightning_alws.gaussian_process import Hyperparameters
from lightning_alws.models.gp_latent import GaussianProcessModel

NAMES = ("lengthscale", "scale", "noise")
SERIES = 3
EVERY_N_STEPS = 5  # how often the course of the hyperparameters is noted


class GaussianProcessHyperparameters(FigureWithHistory):
    """Logs ``val/`` and ``test/``: ``lengthscale``, ``scale`` and ``noise``, the same of exact maximum marginal
    likelihood on the same training data (``lengthscale_ml``, …) and, where the data know it, of the truth
    (``lengthscale_truth``, …) with ``largest_error``, the largest |learnt/truth − 1| of the three; exact held-out
    ``log_likelihood`` in nats per series, ``log_likelihood_ml`` and ``gap``, the second less the first;
    ``posterior_rms``, of the amortised posterior mean from the exact one at the learnt hyperparameters, and
    ``posterior_rms_relative``, the same over the exact one's RMS.

    Draws the hyperparameters against the step, and some series with both posterior means.
    """

    model_class = GaussianProcessModel

    def __init__(self) -> None:
        super().__init__()
        self._by_ml: Hyperparameters | None = None

    def by_ml(self, module: Any, data: Any) -> Hyperparameters:
        """The hyperparameters of greatest marginal likelihood of the training data; found once."""
        if self._by_ml is None:
            self._by_ml = module.generative.hyperparameters.maximised(data.observations("train"))
        return self._by_ml

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remember where training begins."""
        self.remember(0, **vars(pl_module.evaluation_model.hyperparameters))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Remember where it stands."""
        if trainer.global_step % EVERY_N_STEPS == 0:
            self.remember(trainer.global_step, **vars(pl_module.evaluation_model.hyperparameters))

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """The hyperparameters, the log-likelihoods of a split, and how good the amortised posterior mean is."""
        x = data.observations(split)
        learnt, by_ml = module.evaluation_model.hyperparameters, self.by_ml(module, data)
        numbers = {**vars(learnt), **{f"{name}_ml": value for name, value in vars(by_ml).items()}}
        if truth := getattr(data, "truth", None):
            numbers.update({f"{name}_truth": value for name, value in vars(truth).items()})
            numbers["largest_error"] = max(abs(getattr(learnt, name) / getattr(truth, name) - 1) for name in NAMES)
        ours, best = float(learnt.log_marginal(x).mean()), float(by_ml.log_marginal(x).mean())
        amortised, exact = module.posterior_mean(x).double().cpu(), learnt.posterior_mean(x)
        rms = float((amortised - exact).square().mean().sqrt())
        numbers.update(
            log_likelihood=ours,
            log_likelihood_ml=best,
            gap=best - ours,
            posterior_rms=rms,
            posterior_rms_relative=rms / float(exact.square().mean().sqrt()),
        )
        return numbers

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Above, each hyperparameter's course; below, series of the split."""
        figure = Figure(figsize=(13, 6.5), layout="constrained")
        axes = figure.subplots(2, SERIES)
        truth, by_ml = getattr(data, "truth", None), self.by_ml(module, data)
        for axis, name in zip(axes[0], NAMES, strict=True):
            axis.plot(self.steps, self.history.get(name, []), label="amortised learning")
            axis.axhline(getattr(by_ml, name), color="tab:orange", ls="--", label="exact maximum likelihood")
            if truth is not None:
                value = getattr(truth, name)
                axis.axhline(value, color="black", lw=1, label="truth")
                axis.axhspan(0.85 * value, 1.15 * value, color="black", alpha=0.08, label="truth ± 15 %")
            axis.set(title=name, xlabel="step")
        axes[0, 0].legend()
        self._draw_series(axes[1], module, data, split)
        return figure

    @staticmethod
    def _draw_series(axes: Any, module: Any, data: Any, split: str) -> None:
        x = data.observations(split)[:SERIES]
        learnt: Hyperparameters = module.evaluation_model.hyperparameters
        amortised, exact = module.posterior_mean(x).double().cpu(), learnt.posterior_mean(x)
        times = np.arange(x.shape[1])
        for row, (axis, series) in enumerate(zip(axes, x.cpu(), strict=False)):
            axis.plot(times, series.numpy(), "o", color="0.5", ms=3, label="x, observed")
            if hasattr(data, "latents"):
                axis.plot(times, data.latents(split)[row].numpy(), color="0.7", lw=4, label="z that made it")
            axis.plot(times, exact[row].numpy(), color="tab:orange", label="E[z|x], exact")
            axis.plot(times, amortised[row].numpy(), "--", color="tab:blue", label="E[z|x], amortised")
            axis.set(title=f"{split} series {row}", xlabel="sampling intervals")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].legend(fontsize="small")
