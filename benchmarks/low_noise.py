"""The gap to a VAE at low noise: errors of a step's gradient on a linear-Gaussian model as its noise σ falls.

    python benchmarks/low_noise.py [--samples 500 2000] [--repeats 10] [--json FILE]

Two latents, four numbers observed, a batch of 100 data of a model that lies off the one in training by a fifth of σ in
each parameter, so that the exact gradient stays of the noise's order. For each σ and N, the error of the batch's mean
gradient over its exact length, root mean square over repeats and its bias, of

    plug-in   kernel ridge regression on N samples, the bandwidth following them, with the best of five ridges
    centred   the same less the mean over a quarter of the N, held out
    VAE       N/100 draws for each datum from the exact posterior: a VAE whose encoder has found it, at equal passes
              through the generator, which one encoder's bias can only make worse
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]  # the model with a known truth lives with the tests

from models import LinearGaussian, flat_gradient  # noqa: E402
from sample_use import BATCH, Problem, centred, errors, plain  # noqa: E402

from lightning_alws.regression import KernelRidge  # noqa: E402

NOISES = (1.0, 0.3, 0.1, 0.03)
RIDGES = (0.1, 0.01, 1e-3, 1e-4, 1e-5)
AWAY = 0.2  # σ


class LowNoise(Problem):
    """A linear-Gaussian model in training and the data of one near it, whose mean gradient is exact."""

    def __init__(self, noise: float) -> None:
        torch.manual_seed(0)
        self.model = LinearGaussian(2, 4, log_scale=float(torch.tensor(noise).log()))
        other = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter in (other.weight, other.bias):
                parameter.add_(AWAY * noise * torch.randn_like(parameter))
            other.log_scale.add_(AWAY)
        self.x = other.sleep(BATCH).x
        self.exact = flat_gradient(self.model.log_marginal(self.x).mean(), self.model)
        self.ridge = RIDGES[0]

    def regression(self, ridge: float | None = None, intercept: bool = False) -> KernelRidge:
        return super().regression(self.ridge if ridge is None else ridge, intercept)


def variational(problem: Problem, count: int) -> Tensor:
    """Of the mean of log p(z, x*) over count/B draws z ~ p(z|x*) for each of the B data."""
    model: LinearGaussian = problem.model  # type: ignore[assignment]
    with torch.no_grad():
        precision = torch.eye(2).double() + model.weight.T @ model.weight * (-2 * model.log_scale).exp()
        covariance = torch.linalg.inv(precision)
        mean = (problem.x - model.bias) @ model.weight @ covariance * (-2 * model.log_scale).exp()
        draws = max(1, count // len(mean))
        z = mean + torch.randn(draws, *mean.shape).double() @ torch.linalg.cholesky(covariance).T
    x = problem.x.expand(draws, -1, -1).flatten(0, 1)
    return flat_gradient(model.likelihood(z.flatten(0, 1)).log_prob(x).mean(), model)


def row(problem: LowNoise, count: int, repeats: int) -> dict[str, tuple[float, float, float]]:
    """By method, RMS error and bias at the ridge of least error, and that ridge."""
    found = {}
    for name, estimate in {"plug-in": plain(), "centred": centred(0.25), "VAE": variational}.items():
        tried = []
        for problem.ridge in RIDGES if name != "VAE" else RIDGES[:1]:
            torch.manual_seed(1)
            gradients = torch.stack([estimate(problem, count) for _ in range(repeats)])
            tried.append((*errors(gradients, problem.exact), problem.ridge))
        found[name] = min(tried)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 2000], metavar="N")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    table = []
    print(f"{'σ':>5} {'N':>6}  {'plug-in: RMS, bias, ridge':26} {'centred':26} VAE: RMS, bias")
    for noise in NOISES:
        problem = LowNoise(noise)
        for count in arguments.samples:
            found = row(problem, count, arguments.repeats)
            cells = "  ".join(
                f"{rms:7.2f} {bias:7.2f}" + (f" {ridge:8.0e}" if name != "VAE" else "")
                for name, (rms, bias, ridge) in found.items()
            )
            print(f"{noise:5} {count:6}  {cells}", flush=True)
            table.append({"noise": noise, "samples": count, **found})
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
