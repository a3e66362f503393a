"""How exact the amortised gradient is on the softplus toy, beside variational methods; figure and numbers."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from matplotlib.figure import Figure

from callbacks.figure import ExperimentFigure
from callbacks.gradient_panels import draw_errors, draw_model
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.metrics.gradient_toy import (
    AMORTISED,
    RIVALS,
    Counts,
    amortised_errors,
    representative,
    rival_errors,
)
from lightning_alws.metrics.gradients import RelativeError
from lightning_alws.models.softplus_toy import SoftplusGenerator, SoftplusToy
from lightning_alws.regression import KernelRidge, freeze

Point = tuple[float, float]
Table = dict[Point, dict[str, RelativeError]]

NAMED: tuple[Point, ...] = ((0.5, 0.3), (1.0, 0.3), (1.5, 0.1))  # (‖b‖, σ) whose errors are logged one by one
COMPARED = ("vae", "iwae_10", "rws_10")
WORTH_COMPARING = 0.02  # a rival's relative bias below which it is as good as none


class GradientError(ExperimentFigure):
    """Measures ∇_b log p(x) against quadrature on a grid of ‖b‖ and σ, with the run's own regression.

    After each validation: ``val/log_likelihood`` (exact, nats per observation) and ``val/norm_error``, |‖b‖ − truth|
    over the truth. In the test also, all divided by the root mean square of the exact gradient over x ~ p_θ:

    * ``rms_FORM_NORM_SCALE`` at three points of the grid; ``rms_worst_FORM`` over all of it, ``bias_worst_METHOD``;
    * ``rate_FORM``, the power of N by which the root mean square error at these points falls;
    * ``bias_below_FORM``: of the pairs of a point and a rival (VAE, IWAE-10, RWS-10) whose bias exceeds 2 %, the share
      in which the amortised bias is lower.

    FORM is one of plug_in, direct and their centred versions; METHOD also a rival. The whole table is in
    ``results.json`` under ``provenance``. How evaluations are counted: :mod:`lightning_alws.metrics.gradient_toy`.

    Args:
        norms: ‖b‖ on the grid.
        scales: σ on the grid.
        angle: of b to the first axis, in degrees. At 0 the posterior factorises, as mean-field methods assume.
        sleep_samples: N of the grid, and joint evaluations of every rival for each x.
        fewer_samples: further N, for the rate.
        counts: observations, repeats and steps.

    Raises:
        UserError: a number makes no sense, or a list is empty.
    """

    model_class = SoftplusToy

    def __init__(
        self,
        norms: list[float] = [0.5, 1.0, 1.5, 2.0],  # noqa: B006
        scales: list[float] = [0.1, 0.3, 1.0],  # noqa: B006
        angle: float = 45.0,
        sleep_samples: int = 8000,
        fewer_samples: list[int] = [500, 2000],  # noqa: B006
        counts: Counts = Counts(),  # noqa: B008 (frozen)
    ) -> None:
        for name, values in (("norms", norms), ("scales", scales)):
            if not values or not all(0 < value < math.inf for value in values):
                raise UserError(f"GradientError.{name} is {values}; give one or more positive numbers.")
        check_at_least(
            "GradientError",
            sleep_samples=(sleep_samples, 2),
            fewer_samples=(min(fewer_samples, default=2), 2),
            observations=(counts.observations, 1),
            held_out=(counts.held_out, 1),
            repeats=(counts.repeats, 1),
            rival_repeats=(counts.rival_repeats, 1),
            fit_steps=(counts.fit_steps, 0),
        )
        self.points = [(norm, scale) for norm in norms for scale in scales]
        self.angle, self.counts = angle, counts
        self.sample_counts = sorted({*fewer_samples, sleep_samples})
        self.sleep_samples = sleep_samples
        self.table: Table = {}
        self.rates: dict[Point, dict[int, dict[str, RelativeError]]] = {}

    def measure(self, module: SoftplusToy, data: Any, split: str) -> dict[str, float]:
        """Likelihood and ‖b‖ as they stand; in the test also the errors of the gradient."""
        model = exact_model(module)
        log_likelihood = model.log_marginal(data.observations(split).to(model.weight)).mean()
        numbers = {"log_likelihood": float(log_likelihood)}
        if hasattr(data, "norm"):
            numbers["norm_error"] = abs(float(model.norm) / data.norm - 1)
        if split == "test":
            self._measure_grid(module)
            numbers.update(self.summary())
        return numbers

    def draw(self, module: SoftplusToy, data: Any, split: str) -> Figure:
        """The fit while it is trained; the errors in the test."""
        if split == "test":
            return draw_errors(self.table, self.rates, regression_of(module))
        return draw_model(exact_model(module), regression_of(module), module.learning, data.observations(split))

    def provenance(self) -> dict[str, Any]:
        """The counts, and every error of the grid in per cent: [RMS, bias]."""
        table = {
            f"norm {norm:g}, scale {scale:g}": {
                name: [round(100 * error.rms, 2), round(100 * error.bias, 2)] for name, error in errors.items()
            }
            for (norm, scale), errors in self.table.items()
        }
        settings = {"sleep_samples": self.sleep_samples, "angle": self.angle, **vars(self.counts)}
        return {"gradient_error": {**settings, "percent_rms_and_bias": table}} if table else {}

    def summary(self) -> dict[str, float]:
        """The numbers for ``results.json``."""
        numbers = {}
        for form in AMORTISED:
            for norm, scale in NAMED:
                if (norm, scale) in self.table:
                    numbers[f"rms_{form}_{norm:g}_{scale:g}"] = self.table[norm, scale][form].rms
            numbers[f"rms_worst_{form}"] = max(errors[form].rms for errors in self.table.values())
            pairs = [
                errors[form].bias < errors[rival].bias
                for errors in self.table.values()
                for rival in COMPARED
                if errors[rival].bias > WORTH_COMPARING
            ]
            if pairs:
                numbers[f"bias_below_{form}"] = sum(pairs) / len(pairs)
            if self.rates and len(self.sample_counts) > 1:
                numbers[f"rate_{form}"] = self._rate(form)
        for name in (*AMORTISED, *RIVALS):
            numbers[f"bias_worst_{name}"] = max(errors[name].bias for errors in self.table.values())
        return numbers

    def _rate(self, form: str) -> float:
        """The slope of the mean of log RMS error over the named points against log N."""
        size = torch.tensor(self.sample_counts, dtype=torch.float64).log()
        errors = [[by_count[count][form].rms for count in self.sample_counts] for by_count in self.rates.values()]
        error = torch.tensor(errors, dtype=torch.float64).log().mean(0)
        size = size - size.mean()
        return float((size * error).sum() / size.square().sum())

    def _measure_grid(self, module: SoftplusToy) -> None:
        regression = regression_of(module)
        self.table, self.rates = {}, {}
        for norm, scale in self.points:
            model = SoftplusGenerator(norm, self.angle, scale).double().to(module.device)
            x = representative(model, self.counts.observations)
            amortised = amortised_errors(model, regression, x, self.sleep_samples, self.counts)
            self.table[norm, scale] = amortised | rival_errors(model, x, self.sleep_samples, self.counts)
            if (norm, scale) in NAMED:
                fewer = [count for count in self.sample_counts if count != self.sleep_samples]
                self.rates[norm, scale] = {
                    **{count: amortised_errors(model, regression, x, count, self.counts) for count in fewer},
                    self.sleep_samples: amortised,
                }


def exact_model(module: SoftplusToy) -> SoftplusGenerator:
    """The model to evaluate, in float64, of whose parameters b alone requires a gradient."""
    model = copy.deepcopy(module.evaluation_model).double().requires_grad_(False)
    assert isinstance(model, SoftplusGenerator)
    model.weight.requires_grad_()
    return model


def regression_of(module: SoftplusToy) -> KernelRidge:
    """The regression that the run is trained with, made anew in float64, with nothing in it trained."""
    regression = module.learning.regression((1,)).double().to(module.device)
    regression.initialise(exact_model(module).sleep(2000).x)
    freeze(regression)
    return regression
