"""Error of the amortised gradient on a linear-Gaussian model, whose gradient is exact, against N, ridge and form.

    python benchmarks/gradient_error.py

prints the RMS error of ∇_θ log p(x) over x ~ p_θ, divided by the RMS exact gradient, for the plug-in and the direct
form, with and without an intercept, at N = 250, 1 000, 4 000 sleep samples, and the ratio of the first to the last
(4 where the error falls as N^(−1/2)).
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]  # the model with a known truth lives with the tests

from models import LinearGaussian, flat_gradient  # noqa: E402

from lightning_alws.learning import INITIAL_SAMPLES  # noqa: E402
from lightning_alws.metrics.gradients import FORMS, predictions, relative_error  # noqa: E402
from lightning_alws.regression import KernelRidge, freeze  # noqa: E402

COUNTS, REPEATS = (250, 1000, 4000), 3


def main() -> None:
    """Print the table."""
    print(
        f"{'latents, pixels':16} {'form':8} {'ridge':>6} {'intercept':>9}  "
        + "  ".join(f"N={n:<5}" for n in COUNTS)
        + " ratio"
    )
    for dims, ridge, intercept in itertools.product(((2, 4), (1, 2)), (0.01, 0.1), (False, True)):
        torch.manual_seed(1)
        model = LinearGaussian(*dims, log_scale=0.0)
        x = model.sleep(40).x
        exact = torch.stack([flat_gradient(value, model) for value in model.log_marginal(x)])
        regression = KernelRidge((dims[1],), ridge=ridge, intercept=intercept).double()
        regression.initialise(model.sleep(INITIAL_SAMPLES).x)
        freeze(regression)
        errors: dict[str, list[float]] = {form: [] for form in FORMS}
        for count in COUNTS:
            draws = [predictions(model, regression, model.sleep(count), x) for _ in range(REPEATS)]
            for form in FORMS:
                errors[form].append(relative_error(torch.stack([draw[form] for draw in draws]), exact).rms)
        for form in FORMS:
            cells = "  ".join(f"{error:7.3f}" for error in errors[form])
            ratio = errors[form][0] / errors[form][-1]
            print(f"{dims!s:16} {form:8} {ridge:6} {intercept!s:>9}  {cells} {ratio:5.2f}", flush=True)


if __name__ == "__main__":
    main()
