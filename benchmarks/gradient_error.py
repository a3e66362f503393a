"""Error of the amortised gradient on a linear-Gaussian model, whose gradient is exact, against N, ridge and form.

    python benchmarks/gradient_error.py

prints the RMS error of ∇_θ log p(x) over x ~ p_θ, divided by the RMS exact gradient, for the plug-in and the direct
form, with and without an intercept, at N = 250, 1 000, 4 000 sleep samples, and the ratio of the first to the last
(4 where the error falls as N^(−1/2)).
"""

from __future__ import annotations

import functools
import itertools
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]  # the model with a known truth lives with the tests

from models import LinearGaussian, flat_gradient  # noqa: E402

from lightning_alws.learning import AmortisedLearning, Learning  # noqa: E402
from lightning_alws.regression import KernelRidge  # noqa: E402

COUNTS = (250, 1000, 4000)


def relative_error(model: LinearGaussian, x: torch.Tensor, exact: torch.Tensor, learning: Learning) -> float:
    """One draw of the sleep samples."""
    module = AmortisedLearning(model, learning).double()
    sleep = module.draw(learning.sleep_samples, "benchmark")
    values = module.wake(module.regress(sleep), sleep, x)
    estimate = torch.stack([flat_gradient(value, model) for value in values])
    return float((estimate - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def main() -> None:
    """Print the table."""
    print(
        f"{'latents, pixels':16} {'form':8} {'ridge':>6} {'intercept':>9}  "
        + "  ".join(f"N={n:<5}" for n in COUNTS)
        + " ratio"
    )
    for dims, mode, ridge, intercept in itertools.product(
        ((2, 4), (1, 2)), ("plug-in", "direct"), (0.01, 0.1), (False, True)
    ):
        torch.manual_seed(1)
        model = LinearGaussian(*dims, log_scale=0.0)
        x = model.sleep(40).x
        exact = torch.stack([flat_gradient(value, model) for value in model.log_marginal(x)])
        errors = []
        for count in COUNTS:
            regression = functools.partial(KernelRidge, ridge=ridge, intercept=intercept)
            learning = Learning(sleep_samples=count, regression=regression, mode=mode)  # type: ignore[arg-type]
            draws = [relative_error(model, x, exact, learning) for _ in range(3)]
            errors.append(float(torch.tensor(draws).median()))
        cells = "  ".join(f"{error:7.3f}" for error in errors)
        print(f"{dims!s:16} {mode:8} {ridge:6} {intercept!s:>9}  {cells} {errors[0] / errors[-1]:5.2f}", flush=True)


if __name__ == "__main__":
    main()
