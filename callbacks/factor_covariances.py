"""Factor analysis beside exact maximum likelihood: held-out log-likelihoods, and the covariances they rest on."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.history import FigureWithHistory
from lightning_alws.metrics.factor_analysis import Normal, maximum_likelihood
from lightning_alws.models.linear_gaussian import LinearGaussianGenerator, LinearGaussianModel

BAR = 0.02  # nats per observation: what the experiment sets out to reach


class FactorCovariances(FigureWithHistory):
    """Logs ``val/`` and ``test/``: ``log_likelihood`` of the model, exact and in nats per observation;
    ``log_likelihood_em`` of exact maximum likelihood on the same training data; ``gap``, the second less the first;
    ``log_likelihood_truth`` where the data know their parameters.

    Draws the covariance that made the data (else that of the training data), the one by EM, the learnt one, all on
    one scale of colours, and the gap over the steps.
    """

    model_class = LinearGaussianModel

    def __init__(self) -> None:
        super().__init__()
        self._by_em: Normal | None = None

    def by_em(self, module: Any, data: Any) -> Normal:
        """The factor model of greatest likelihood of the training data; fitted once."""
        if self._by_em is None:
            self._by_em = maximum_likelihood(data.observations("train"), module.generative.loadings.shape[1])
        return self._by_em

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """The log-likelihoods of a split."""
        x = data.observations(split)
        model: LinearGaussianGenerator = module.evaluation_model
        ours = float(model.log_marginal(x).mean())
        by_em = self.by_em(module, data).log_likelihood(x)
        numbers = {"log_likelihood": ours, "log_likelihood_em": by_em, "gap": by_em - ours}
        if hasattr(data, "true_covariance"):
            numbers["log_likelihood_truth"] = Normal(data.true_mean, data.true_covariance).log_likelihood(x)
        if split == "val":
            self.remember(module.global_step, gap=numbers["gap"])
        return numbers

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Three covariances and the gap over the steps."""
        known = hasattr(data, "true_covariance")
        first = data.true_covariance if known else torch.cov(data.observations("train").double().cpu().T)
        panels = {
            "truth" if known else "training data": first,
            "exact maximum likelihood (EM)": self.by_em(module, data).covariance,
            "amortised learning": module.evaluation_model.covariance.double().cpu(),
        }
        limit = max(float(covariance.abs().max()) for covariance in panels.values())
        figure = Figure(figsize=(15, 3.6), layout="constrained")
        axes = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.3])
        for axis, (title, covariance) in zip(axes[:3], panels.items(), strict=True):
            image = axis.imshow(covariance.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.set(title=title + _difference(covariance, first), xticks=[], yticks=[], xlabel="covariance of x")
        figure.colorbar(image, ax=axes[2], shrink=0.8)
        _draw_gap(axes[3], self.steps, self.history.get("gap", []))
        return figure


def _difference(covariance: Tensor, reference: Tensor) -> str:
    """How far a covariance is from the first panel's, relative to its size; nothing for that panel itself."""
    difference = float((covariance - reference).norm() / reference.norm())
    return f"\n{100 * difference:.1f} % from the first panel" if difference > 0 else "\n"


def _draw_gap(axis: Any, steps: list[int], gaps: list[float]) -> None:
    """The gap, on a scale that is linear about 0 (held out, it may be negative) and logarithmic beyond."""
    axis.plot(steps, gaps, ".-", label="averaged weights")
    axis.axhspan(-BAR, BAR, color="tab:green", alpha=0.2, label=f"± {BAR} nats")
    axis.set_yscale("symlog", linthresh=BAR)
    axis.set(title="log-likelihood below EM's\nvalidation, nats per observation", xlabel="step", ylim=(-BAR, None))
    axis.legend()
