"""What is the best use of so many sleep samples? Errors of a step's gradient on models whose gradient is exact.

    python benchmarks/sample_use.py [--samples 1000] [--repeats 20] [--json FILE]

Data are x* of a model whose parameters lie a little off those in training, so that there is something to learn. For
each use of N samples it prints the error of the batch's mean gradient, over its exact length: root mean square over
repeats, and the part of it that is bias, at the same number of passes through the generator. Then, how well the error
of the predicted log p (on held-out samples, and leaving one out, which the factor gives for nothing) tells which ridge
has the best gradient; what a backward pass through some of the rows costs in error; and, while the kernel is trained as
well, whether its update had better have samples of its own, those of the model's update, or none held out.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]  # the model with a known truth lives with the tests

from gradient_error_rivals import Truth, small_images  # noqa: E402
from models import LinearGaussian, flat_gradient  # noqa: E402

from lightning_alws.generative import LatentVariableModel, Sleep  # noqa: E402
from lightning_alws.kernels import MedianKernel  # noqa: E402
from lightning_alws.metrics.gradients import Expectation  # noqa: E402
from lightning_alws.models.softplus_toy import SoftplusGenerator  # noqa: E402
from lightning_alws.objectives import LogJointError  # noqa: E402
from lightning_alws.regression import FittedRidge, KernelRidge, freeze  # noqa: E402

BATCH, AWAY, RIDGE = 100, 0.1, 0.1
RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
SHARES = (1.0, 0.5, 0.2, 0.1)
HELD, WIDE, KERNEL_RATE, KERNEL_STEPS, CHAINS = 0.1, 3.0, 0.1, 30, 3

MODELS: dict[str, Callable[[], LatentVariableModel]] = {
    "linear Gaussian, σ = 1": lambda: LinearGaussian(2, 4, log_scale=0.0),
    "linear Gaussian, σ = 0.37": lambda: LinearGaussian(2, 4, log_scale=-1.0),
    "softplus toy, σ = 0.3": lambda: SoftplusGenerator(1.0, 45.0, 0.3, learn_noise=True).double(),
    "images of 16 binary pixels": small_images,
}

Draw = Callable[[LatentVariableModel, int], Tensor]
Estimate = Callable[["Problem", int], Tensor]


class Problem:
    """A model in training, a batch of data x* (B, *event), and the exact mean gradient of log p_θ(x*), (P,)."""

    def __init__(self, make: Callable[[], LatentVariableModel]) -> None:
        torch.manual_seed(0)
        self.model = make()
        other = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(AWAY * torch.randn_like(parameter))
        self.x = other.sleep(BATCH).x
        self.exact = Truth(self.model, self.x).gradient.mean(0)

    def regression(self, ridge: float = RIDGE, intercept: bool = False) -> KernelRidge:
        """As the configs have it: a Gaussian kernel whose bandwidth follows the samples."""
        built = KernelRidge(tuple(self.x.shape[1:]), MedianKernel, ridge, intercept).double()
        freeze(built)
        return built

    def gradient(self, sleep: Sleep, weights: Tensor, x: Tensor, form: str = "plug_in") -> Tensor:
        """∇_θ of the mean of Ĵ, (P,)."""
        return flat_gradient(Expectation(self.model, form)(sleep, weights, x).mean(), self.model)


def samples(model: LatentVariableModel, z: Tensor) -> Sleep:
    """Sleep samples with given latents."""
    likelihood = model.likelihood(z)
    x = likelihood.sample().detach()
    return Sleep(z, x, model.joint_given(likelihood, z, x, False))


def independent(model: LatentVariableModel, count: int) -> Tensor:
    """z_n ~ p(z)."""
    return model.sample_prior(count)


def antithetic(model: LatentVariableModel, count: int) -> Tensor:
    """Pairs z, −z of a symmetric prior."""
    half = model.sample_prior(count // 2)
    return torch.cat([half, -half])


def quasi_random(model: LatentVariableModel, count: int) -> Tensor:
    """Scrambled Sobol points, mapped to a standard normal."""
    like = model.sample_prior(1)
    points = torch.quasirandom.SobolEngine(like.shape[1], scramble=True, seed=int(torch.randint(2**31, ()))).draw(count)
    return torch.special.ndtri(points.double().clamp(1e-6, 1 - 1e-6)).to(like)


def plain(
    draw: Draw = independent,
    form: str = "plug_in",
    intercept: bool = False,
    shape: Callable[[Tensor], Tensor] = lambda weights: weights,
) -> Estimate:
    """Σ_n W_n* ∇ log p(z_n, ·) from N samples, with the weights as they are or reshaped."""

    def estimate(problem: Problem, count: int) -> Tensor:
        sleep = samples(problem.model, draw(problem.model, count))
        weights = problem.regression(intercept=intercept).fit(sleep.x).weights(problem.x)
        return problem.gradient(sleep, shape(weights), problem.x, form)

    return estimate


def centred(share: float, strength: float = 1.0, draw: Draw = independent, form: str = "plug_in") -> Estimate:
    """The same, less ``strength`` times the mean over held-out samples, which are a share of the N."""

    def estimate(problem: Problem, count: int) -> Tensor:
        held_out = int(share * count)
        sleep = samples(problem.model, draw(problem.model, count - held_out))
        query = samples(problem.model, draw(problem.model, held_out)).x
        fitted = problem.regression().fit(sleep.x)
        away = problem.gradient(sleep, fitted.weights(query), query, form)
        return problem.gradient(sleep, fitted.weights(problem.x), problem.x, form) - strength * away

    return estimate


def normalised(weights: Tensor) -> Tensor:
    """Weights of every query brought to sum to one."""
    return weights / weights.sum(0)


def simplex(weights: Tensor) -> Tensor:
    """Their positive parts, normalised."""
    return normalised(weights.clamp_min(0))


def near_the_posterior(share: float, width: float = 0.5) -> Estimate:
    """A share of the latents about the posterior means that a first half of the samples gives, importance-weighted.

    The regression minimises Σ_n w_n (y_n − f(x_n))² + λ‖f‖² with w = p(z)/q(z), so that it predicts the same.
    """

    def estimate(problem: Problem, count: int) -> Tensor:
        model, half = problem.model, count // 2
        first = samples(model, model.sample_prior(half))
        means = problem.regression().fit(first.x).weights(problem.x).T @ first.z
        near = int(share * half)
        centres = means[torch.randint(len(means), (near,))]
        z = torch.cat([model.sample_prior(half - near), centres + width * torch.randn_like(centres)])
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
        about = torch.distributions.Normal(means, width).log_prob(z[:, None]).sum(2).logsumexp(1)
        around = about - torch.tensor(float(len(means))).log()
        mixture = torch.logaddexp(torch.tensor(1 - share).log() + prior, torch.tensor(share).log() + around)
        second = samples(model, z)
        sleep = Sleep(torch.cat([first.z, z]), torch.cat([first.x, second.x]), first.joint)
        importance = torch.cat([torch.ones(half), (prior - mixture).exp()]).to(z)
        regression = problem.regression()
        regression.importance = lambda features, wake: importance  # type: ignore[method-assign]
        return problem.gradient(sleep, regression.fit(sleep.x).weights(problem.x), problem.x)

    return estimate


USES: dict[str, Estimate] = {
    "plain": plain(),
    "antithetic latents": plain(antithetic),
    "quasi-random latents": plain(quasi_random),
    "intercept": plain(intercept=True),
    "weights normalised": plain(shape=normalised),
    "weights on the simplex": plain(shape=simplex),
    "direct": plain(form="direct"),
    "a half near the posterior": near_the_posterior(0.5),
    "centred, 5 % held out": centred(0.05),
    "centred, 10 %": centred(0.1),
    "centred, 25 %": centred(0.25),
    "centred, 50 %": centred(0.5),
    "centred by a half, 10 %": centred(0.1, 0.5),
    "centred, 10 %, antithetic": centred(0.1, draw=antithetic),
    "centred, 10 %, quasi-random": centred(0.1, draw=quasi_random),
    "centred, 10 %, direct": centred(0.1, form="direct"),
}


def errors(gradients: Tensor, exact: Tensor) -> tuple[float, float]:
    """RMS error of R estimates (R, P), and its bias less what noise leaves in the mean; over the exact length."""
    error, size = gradients - exact, exact.norm()
    bias = (error.mean(0).square() - error.var(0) / len(error)).sum().clamp_min(0).sqrt()
    return float(error.square().sum(1).mean().sqrt() / size), float(bias / size)


def repeated(problem: Problem, estimate: Estimate, count: int, repeats: int) -> tuple[float, float]:
    """The errors over repeats, each use with the same seeds."""
    torch.manual_seed(1)
    return errors(torch.stack([estimate(problem, count) for _ in range(repeats)]), problem.exact)


def of_ridges(problem: Problem, count: int, repeats: int) -> list[dict[str, float]]:
    """For each ridge: relative error of log p(z, x) held out and leaving one out, and the centred gradient's error."""
    rows = []
    for ridge in RIDGES:
        torch.manual_seed(2)
        held, left, gradients = [], [], []
        for _ in range(repeats):
            sleep, fresh = problem.model.sleep(count, direct=True), problem.model.sleep(count // 10, direct=True)
            target, regression = sleep.joint.log_joint.detach(), problem.regression(ridge)
            fitted = regression.fit(sleep.x)
            mean, spread = target.mean(), target.var()
            predicted = fitted.weights(fresh.x).T @ (target - mean) + mean
            held.append((predicted - fresh.joint.log_joint.detach()).square().mean() / spread)
            solved = fitted.factor.solve(torch.cat([(target - mean)[:, None], torch.eye(count).to(target)], dim=1))
            left.append((solved[:, 0] / solved[:, 1:].diagonal()).square().mean() / spread)
            own = samples(problem.model, sleep.z)
            again = regression.fit(own.x)
            gradients.append(
                problem.gradient(own, again.weights(problem.x), problem.x)
                - problem.gradient(own, again.weights(fresh.x), fresh.x)
            )
        rows.append(
            {
                "ridge": ridge,
                "held_out": float(torch.stack(held).mean()),
                "held_out_spread": float(torch.stack(held).std()),
                "leave_one_out": float(torch.stack(left).mean()),
                "leave_one_out_spread": float(torch.stack(left).std()),
                "gradient": errors(torch.stack(gradients), problem.exact)[0],
            }
        )
    return rows


def of_rows(problem: Problem, count: int, repeats: int) -> dict[float, float]:
    """Error where the backward pass goes through a share of the rows, drawn in proportion to Σ_b |W_nb|."""
    result = {}
    for share in SHARES:

        def estimate(problem: Problem, count: int, share: float = share) -> Tensor:
            sleep = problem.model.sleep(count)
            weights = problem.regression().fit(sleep.x).weights(problem.x)
            if share < 1:
                chance = weights.abs().sum(1) / weights.abs().sum()
                rows = torch.multinomial(chance, int(share * count), replacement=True)
                weights = weights[rows] / (len(rows) * chance[rows, None])
                sleep = Sleep(sleep.z[rows], sleep.x[rows], sleep.joint)
            return problem.gradient(sleep, weights, problem.x)

        result[share] = repeated(problem, estimate, count, repeats)[0]
    return result


def log_joint_loss(fitted: FittedRidge, sleep: Sleep, held_out: Sleep) -> Tensor:
    """The kernel's published objective, on held-out samples."""
    return LogJointError()(fitted.weights(held_out.x), sleep, held_out)


def leave_one_out_loss(regression: KernelRidge, sleep: Sleep) -> Tensor:
    """The same with every sample predicted by all others: W_ni = −A_ni/A_ii for n ≠ i, A = (K + λI)⁻¹."""
    gram = regression.kernel.gram(regression.kernel.features(sleep.x))
    eye = torch.eye(len(gram)).to(gram)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + regression.ridge * eye))
    weights = -(inverse / inverse.diagonal()).masked_fill(eye.bool(), 0.0)
    return LogJointError()(weights, sleep, sleep)


def of_recycling(problem: Problem, count: int, chains: int) -> dict[str, tuple[float, float]]:
    """Errors of the model's gradient while the kernel is trained, and of what its samples predict, for each use of N.

    Recycled: one set of samples for both updates, a tenth held out for the kernel's. Apart: a half for each. Leave one
    out: all samples for both, with none held out. The kernel begins three times too wide; means over the second half of
    the steps, so that the kernel that meets a gradient's samples was trained on earlier ones alone.
    """
    held, found = int(HELD * count), {}
    for use in ("recycled", "apart", "leave one out"):
        torch.manual_seed(3)
        gradients, relative = [], []
        for _ in range(chains):
            regression = KernelRidge(
                tuple(problem.x.shape[1:]), functools.partial(MedianKernel, multiple=WIDE), RIDGE
            ).double()
            optimiser = torch.optim.Adam(regression.parameters(), KERNEL_RATE)
            for step in range(KERNEL_STEPS):
                rest = count if use == "leave one out" else count - held
                sizes = [rest // 2, rest - rest // 2] if use == "apart" else [rest]
                sets = [problem.model.sleep(size) for size in sizes]
                sleep, own = sets[0], sets[-1]
                fitted = regression.fit(sleep.x)
                gradient = problem.gradient(sleep, fitted.weights(problem.x).detach(), problem.x)
                if use == "leave one out":
                    loss = leave_one_out_loss(regression, own)
                else:
                    fitted = regression.fit(own.x) if use == "apart" else fitted
                    loss = log_joint_loss(fitted, own, problem.model.sleep(held))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                if 2 * step >= KERNEL_STEPS:
                    gradients.append(gradient)
            with torch.no_grad():
                sleep, fresh = problem.model.sleep(count), problem.model.sleep(count)
                loss = log_joint_loss(regression.fit(sleep.x), sleep, fresh)
                relative.append(loss / fresh.joint.log_joint.var())
        found[use] = (errors(torch.stack(gradients), problem.exact)[0], float(torch.stack(relative).mean()))
    return found


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000, help="N, passes through the generator")
    parser.add_argument("--repeats", type=int, default=20, help="of each estimate")
    parser.add_argument("--only-recycling", action="store_true", help="what is measured while the kernel is trained")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args()
    count, repeats = options.samples, options.repeats
    record: dict[str, dict] = {}
    for name, make in MODELS.items():
        problem = Problem(make)
        print(f"\n{name}: RMS error and bias of the gradient over its length, N = {count}, {repeats} repeats")
        recycling = record.setdefault(name, {})["recycling"] = of_recycling(problem, count, CHAINS)
        print("  while the kernel is trained: the gradient's error, and at the end that of log p over its variance")
        for use, (rms, error) in recycling.items():
            print(f"  {use:28} {rms:7.3f} {error:7.4f}", flush=True)
        if options.only_recycling:
            continue
        record[name] |= {"uses": {}, "ridges": of_ridges(problem, count, repeats), "rows": {}}
        for use, estimate in USES.items():
            rms, bias = record[name]["uses"][use] = repeated(problem, estimate, count, repeats)
            print(f"  {use:28} {rms:7.3f} {bias:7.3f}", flush=True)
        print("  ridge    held-out error     leave-one-out error   gradient's")
        for row in record[name]["ridges"]:
            print(
                f"  {row['ridge']:<6} {row['held_out']:8.4f} ± {row['held_out_spread']:.4f} "
                f"{row['leave_one_out']:10.4f} ± {row['leave_one_out_spread']:.4f} {row['gradient']:10.3f}"
            )
        record[name]["rows"] = of_rows(problem, count, repeats)
        shares = ", ".join(f"{share:.0%}: {error:.3f}" for share, error in record[name]["rows"].items())
        print(f"  backward pass through a share of the rows: {shares}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
