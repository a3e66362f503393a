"""How well a neural process predicts held-out outputs, beside what is best possible, with functions drawn from it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.figure import ExperimentFigure
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.models.neural_process import NeuralProcess

ROWS_AT_ONCE = 2**18  # pairs of a latent and an input, some 50 MB for each layer of 50 units
INPUTS = 200  # of a drawn curve


class NeuralProcessFigure(ExperimentFigure):
    """Logs the predictive log-likelihood in nats per held-out target, and draws functions given their context.

    * ``predictive_log_likelihood``: log p(y_held-out | context) / number held out, the mean over the functions of the
      split, by draws of z given the context; ``predictive_standard_error`` of that mean over functions;
    * ``oracle_log_likelihood``, ``oracle_standard_error``: the same with the law that the functions were drawn from;
    * ``gap_to_oracle``, ``gap_standard_error``: the oracle's minus the model's, function by function; and
      ``median_gap_to_oracle``, which the few functions that a model gets quite wrong do not move.

    The figure has one column for each function: draws from the model above, draws from the oracle below.

    Args:
        num_samples: draws of z for each function in the test.
        val_samples: draws in a validation.
        columns: functions drawn, the first of the split.
        curves: draws shown for each of them.

    Raises:
        UserError: a count is below 1, or the model or the data are not those of a neural process.
    """

    def __init__(self, num_samples: int = 2000, val_samples: int = 500, columns: int = 5, curves: int = 30) -> None:
        check_at_least(
            "trainer.callbacks",
            num_samples=(num_samples, 1),
            val_samples=(val_samples, 1),
            columns=(columns, 1),
            curves=(curves, 1),
        )
        self.num_samples, self.val_samples = num_samples, val_samples
        self.columns, self.curves = columns, curves
        self._oracle: dict[str, Tensor] = {}
        self._provenance: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a model or data that it knows nothing of."""
        if not isinstance(getattr(pl_module, "generative", None), NeuralProcess):
            raise UserError(
                f"trainer.callbacks holds NeuralProcessFigure, but the model is {type(pl_module).__name__}; leave the "
                "callback out, or use NeuralProcessModel or NeuralProcessELBO."
            )
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not (hasattr(data, "oracle") and hasattr(data, "truth")):
            raise UserError(
                f"trainer.callbacks holds NeuralProcessFigure, which needs data whose truth is known, but those are "
                f"{type(data).__name__}; leave the callback out, or use SineFunctions."
            )

    def provenance(self) -> dict[str, Any]:
        """How the test figure was made."""
        return self._provenance

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """The figures named above, over all functions of the split."""
        points = data.rows(split)
        held_out = (1 - points[..., 2]).sum(-1).double()
        count = self.num_samples if split == "test" else self.val_samples
        model = self._log_predictive(module, points, count) / held_out
        if split not in self._oracle:
            self._oracle[split] = data.oracle(points).log_predictive(points) / held_out
        oracle = self._oracle[split]
        self._provenance = {"predictive_log_likelihood": {"samples_per_function": count, "functions": len(points)}}
        numbers = {}
        for name, values in (("predictive", model), ("oracle", oracle), ("gap", oracle - model)):
            numbers["gap_to_oracle" if name == "gap" else f"{name}_log_likelihood"] = float(values.mean())
            if len(values) > 1:
                numbers[f"{name}_standard_error"] = float(values.std() / len(values) ** 0.5)
        numbers["median_gap_to_oracle"] = float((oracle - model).quantile(0.5))
        return numbers

    @staticmethod
    def _log_predictive(module: Any, points: Tensor, count: int) -> Tensor:
        functions = max(1, ROWS_AT_ONCE // (count * points.shape[1]))
        points = points.to(module.dtype)
        return torch.cat([module.evaluation_model.log_predictive(part, count) for part in points.split(functions)])

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Functions drawn from the model and from the oracle, with context, held-out points and the true function."""
        points = data.rows(split)[: self.columns]
        x = torch.linspace(float(points[..., 0].min()), float(points[..., 0].max()), INPUTS, device=points.device)
        model, given = module.evaluation_model, points.to(module.dtype)
        mean, scale = model.encode(given, given[..., 2])
        z = mean[:, None] + scale[:, None] * torch.randn(len(mean), self.curves, mean.shape[1]).to(mean)
        drawn = [model.decode(z, x.to(z))[0], data.oracle(points).sample(self.curves, x)]
        truth = data.truth(split, x)[: self.columns]
        figure = Figure(figsize=(2.6 * len(points), 4.6), layout="constrained")
        axes = figure.subplots(2, len(points), sharex=True, sharey=True, squeeze=False)
        for row, (name, functions) in enumerate((("model", drawn[0]), ("oracle", drawn[1]))):
            for column, axis in enumerate(axes[row]):
                panel(axis, x.cpu(), functions[column].cpu(), truth[column].cpu(), points[column].cpu())
            axes[row, 0].set_ylabel(f"{name}\ny")
        for axis in axes[1]:
            axis.set_xlabel("x")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        return figure


def panel(axis: Axes, x: Tensor, functions: Tensor, truth: Tensor, points: Tensor) -> None:
    """One function: draws (n, m) at inputs x (m,), the truth (m,), and its points (T, 3)."""
    axis.plot(x, functions.T, color="tab:blue", alpha=0.25, linewidth=0.8)
    axis.plot([], [], color="tab:blue", linewidth=0.8, label="functions drawn given the context")
    axis.plot(x, truth, color="black", linestyle="--", linewidth=1.2, label="true function")
    context = points[:, 2] == 1
    axis.plot(*points[context, :2].T, "o", color="black", markersize=5, label="context")
    axis.plot(*points[~context, :2].T, "o", color="tab:red", markerfacecolor="white", markersize=5, label="held out")
