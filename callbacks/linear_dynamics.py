"""A linear-Gaussian state space model beside exact maximum likelihood: held-out likelihoods, dynamics, smoothing."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.history import FigureWithHistory
from lightning_alws.metrics.kalman import KalmanModel, maximum_likelihood, random_start
from lightning_alws.models.linear_dynamics import LinearDynamicsModel

BAR = 0.02  # nats per time step: what the experiment sets out to reach
STARTS = 2  # random ones of EM
SLEEP_SAMPLES = 3000  # for the amortised posterior that is drawn


class KalmanComparison(FigureWithHistory):
    """Logs ``val/`` and ``test/``: ``log_likelihood`` of the model by the Kalman filter, in nats per time step;
    ``log_likelihood_em`` of exact maximum likelihood on the same training data (EM from random parameters, and from
    the true ones where the data know them); ``gap``, the second less the first; ``log_likelihood_truth``.

    Draws the eigenvalues of A, which no choice of latent coordinates changes; a series with what the smoother and the
    amortised posterior make of it; and the gap over the steps.
    """

    model_class = LinearDynamicsModel

    def __init__(self) -> None:
        super().__init__()
        self._by_em: KalmanModel | None = None

    def by_em(self, module: Any, data: Any) -> KalmanModel:
        """The model of greatest likelihood of the training data; fitted once."""
        if self._by_em is None:
            x = data.observations("train")
            latent_dim = len(module.generative.dynamics)
            starts = [random_start(x.cpu(), latent_dim, torch.Generator().manual_seed(k)) for k in range(STARTS)]
            truth = true_model(data)
            if truth is not None and len(truth.dynamics) == latent_dim:
                starts.append(truth)
            self._by_em = maximum_likelihood(x, starts)
        return self._by_em

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """The log-likelihoods of a split."""
        x = data.observations(split)

        def per_step(model: Any, series: Tensor) -> float:
            return float(model.log_marginal(series).mean()) / x.shape[1]

        ours, by_em = per_step(module.evaluation_model, x), per_step(self.by_em(module, data), x.cpu())
        numbers = {"log_likelihood": ours, "log_likelihood_em": by_em, "gap": by_em - ours}
        if truth := true_model(data):
            numbers["log_likelihood_truth"] = per_step(truth, x.cpu())
        if split == "val":
            self.remember(module.global_step, gap=numbers["gap"])
        return numbers

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Eigenvalues, a series, and the gap over the steps."""
        figure = Figure(figsize=(13, 4), layout="constrained")
        axes = figure.subplots(1, 3, width_ratios=[1, 1.6, 1.2])
        by_em, learnt = self.by_em(module, data), module.evaluation_model.dynamics
        self._draw_eigenvalues(axes[0], {"EM": by_em.dynamics, "amortised learning": learnt}, true_model(data))
        x = data.observations(split)[:1]
        posterior = module.amortised_posterior(x, sleep_samples=SLEEP_SAMPLES)
        z = posterior.expectation(cast(Tensor, posterior.sleep.z))[0]
        amortised = (z @ module.evaluation_model.loadings.T).cpu()
        smoothed = by_em.smooth(x.cpu()).mean[0] @ by_em.loadings.T
        times = np.arange(1, x.shape[1] + 1)
        for d in range(min(x.shape[2], 3)):
            colour = f"C{d}"
            axes[1].plot(times, x[0, :, d].cpu().numpy(), "o", ms=3, color=colour)
            axes[1].plot(times, smoothed[:, d].numpy(), color=colour, lw=1)
            axes[1].plot(times, amortised[:, d].numpy(), "--", color=colour)
        axes[1].set(title=f"{split} series 0: x (dots), E[Cz|x] by EM's\nsmoother (thin) and amortised (dashed)")
        axes[1].set(xlabel="time step")
        axes[2].plot(self.steps, self.history.get("gap", []), ".-", label="averaged weights")
        axes[2].axhspan(-BAR, BAR, color="tab:green", alpha=0.2, label=f"± {BAR} nats")
        axes[2].set_yscale("symlog", linthresh=BAR)
        axes[2].set(title="log-likelihood below EM's\nvalidation, nats per time step", xlabel="step", ylim=(-BAR, None))
        axes[2].legend()
        return figure

    @staticmethod
    def _draw_eigenvalues(axis: Any, found: dict[str, Tensor], truth: KalmanModel | None) -> None:
        circle = np.linspace(0, 2 * math.pi, 200)
        axis.plot(np.cos(circle), np.sin(circle), color="0.8", lw=1)
        matrices = {"truth": truth.dynamics, **found} if truth is not None else found
        for marker, (name, matrix) in zip("+ox", matrices.items(), strict=False):
            values = torch.linalg.eigvals(matrix.double().cpu()).numpy()
            axis.plot(values.real, values.imag, marker, ms=9, fillstyle="none", label=name)
        axis.set(title="eigenvalues of A", aspect="equal", xlabel="real", ylabel="imaginary")
        axis.legend(fontsize="small", loc="center left")


def true_model(data: Any) -> KalmanModel | None:
    """The parameters that the data know they were made from, or None."""
    truth = getattr(data, "truth", None)
    if truth is None:
        return None
    return KalmanModel(
        truth["dynamics"],
        truth["loadings"],
        truth["process_scale"].square().diag(),
        truth["observation_scale"].square().diag(),
        truth["initial_mean"],
        truth["initial_scale"].square().diag(),
    )
