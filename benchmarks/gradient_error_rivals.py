"""Gradient error of kernel ridge regression beside its alternatives without guarantee, AL-P and AL-NN, at fixed θ.

    python benchmarks/gradient_error_rivals.py [--quick]

Three models with two latents, over which a grid gives log p(x), its gradient, J(x) = E[log p(x|z)|x] and posterior
draws. Sampler and network are trained at that θ on fresh sleep samples, with a learning rate that falls to zero. For
observations x ~ p_θ, and relative to the root mean square of the exact gradient over them, the table gives

    J      RMS error of the predicted J, averaged over draws, over the standard deviation of J over x
    rms    RMS error of ∇_θ Ĵ, of one draw where the method draws
    bias   RMS over x of the mean error over repeats, corrected for their number
    cosine of the mean estimates, all x as one vector, with the exact gradients; size: their projection on these
    drift  length of the error's mean over x and repeats: by how much θ is pushed although the data are p_θ's own
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]  # the model with a known truth lives with the tests

from models import LinearGaussian, flat_gradient  # noqa: E402

from lightning_alws.baselines.al_nn import Regressor, StandardUnits, network_expectation, squared_error  # noqa: E402
from lightning_alws.baselines.al_p import Sampler, particle_expectation, sampler_error  # noqa: E402
from lightning_alws.generative import LatentVariableModel  # noqa: E402
from lightning_alws.learning import INITIAL_SAMPLES  # noqa: E402
from lightning_alws.metrics.gradients import FORMS, Expectation, parameter_gradient, relative_error  # noqa: E402
from lightning_alws.models.image import ImageGenerator  # noqa: E402
from lightning_alws.models.softplus_toy import SoftplusGenerator  # noqa: E402
from lightning_alws.networks import MLPDecoder, MLPFeatures  # noqa: E402
from lightning_alws.regression import KernelRidge, freeze  # noqa: E402

QUICK = "--quick" in sys.argv
OBSERVATIONS, STEPS, BATCH, LEARNING_RATE = 40, 400 if QUICK else 1500, 300, 3e-3
DRAWS, REGRESSIONS, SAMPLERS = 40, 4, 1 if QUICK else 2
RIDGE, INNER_RATE = 0.1, 0.1
COUNTS, INNER_STEPS = (500, 2000), (5, 20)


def small_images() -> ImageGenerator:
    """Sixteen binary pixels; weights three times torch's initial ones, so that images tell of their latents."""
    model = ImageGenerator((1, 4, 4), "bernoulli", 2, lambda dim, shape: MLPDecoder(dim, shape, hidden=[4]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.double()


MODELS: dict[str, Callable[[], LatentVariableModel]] = {
    "linear Gaussian, 4 numbers": lambda: LinearGaussian(2, 4, log_scale=0.0),
    "softplus toy, ‖b‖ = 1, σ = 0.3": lambda: SoftplusGenerator(1.0, 45.0, 0.3, learn_noise=True).double(),
    "images of 16 binary pixels": small_images,
}


class Truth:
    """Exact quantities of a model with two standard normal latents, by the trapezium rule on a grid.

    Attributes:
        x: observations (B, *event).
        gradient: ∇_θ log p(x_b), shape (B, P).
        expectation: J(x_b) = E[log p(x_b|z)|x_b], shape (B,).
    """

    def __init__(self, model: LatentVariableModel, x: Tensor, points: int = 161, limit: float = 6.0) -> None:
        line = torch.linspace(-limit, limit, points, dtype=torch.float64)
        self.grid, self.x = torch.cartesian_prod(line, line), x
        likelihood = model.likelihood(self.grid)
        log_prob = torch.stack([likelihood.log_prob(one.expand(len(self.grid), *one.shape)) for one in x])
        joint = log_prob + model.log_prior(self.grid)
        self.gradient = torch.stack([flat_gradient(value, model) for value in joint.logsumexp(1)])
        self.posterior = joint.detach().softmax(1)
        self.expectation = (self.posterior * log_prob.detach()).sum(1)

    def draws(self) -> Tensor:
        """One draw from each p(z|x_b), shape (1, B, 2)."""
        return self.grid[torch.multinomial(self.posterior, 1)[:, 0]][None]


class Particles(nn.Module):
    """Ĵ of given particles, as a function of the model's parameters."""

    def __init__(self, model: LatentVariableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return particle_expectation(self.model, z, x)


@dataclass(frozen=True)
class Estimates:
    """R estimates of J (R, B) and of its gradient (R, B, P)."""

    values: Tensor
    gradients: Tensor

    def row(self, truth: Truth) -> str:
        error = relative_error(self.gradients, truth.gradient)
        mean, size = self.gradients.mean(0), truth.gradient.square().sum()
        inner = (mean * truth.gradient).sum()
        level = (self.values.mean(0) - truth.expectation).square().mean().sqrt() / truth.expectation.std()
        drift = (mean - truth.gradient).mean(0).norm() / (size / len(mean)).sqrt()
        numbers = (level, error.rms, error.bias, inner / (mean.norm() * size.sqrt()), inner / size, drift)
        return "".join(f"{float(number):8.2f}" for number in numbers)


def trained(module: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Adam with a rate that falls to zero; prints the loss over the last tenth."""
    optimiser = torch.optim.Adam(module.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()


def features(x: Tensor) -> MLPFeatures:
    return MLPFeatures(tuple(x.shape[1:]), hidden=[64], width=64)


def of_particles(model: LatentVariableModel, x: Tensor, draw: Callable[[], Tensor]) -> Estimates:
    """Estimates from DRAWS independent sets of particles."""
    values, gradients = [], []
    for _ in range(DRAWS):
        with torch.no_grad():
            z = draw()
            values.append(particle_expectation(model, z, x))
        gradients.append(parameter_gradient(Particles(model), z, x))
    return Estimates(torch.stack(values), torch.stack(gradients))


def of_weights(model: LatentVariableModel, x: Tensor, form: str, count: int, weigh: Callable) -> Estimates:
    """Estimates Σ_n W_nb log p(z_n, ·) from sets of sleep samples; ``weigh`` gives W, and Ĵ if that is not the sum."""
    values, gradients = [], []
    for _ in range(REGRESSIONS):
        sleep = model.sleep(count)
        value, weights = weigh(sleep)
        function = Expectation(model, form)
        with torch.no_grad():
            values.append(function(sleep, weights, x) if value is None else value)
        gradients.append(parameter_gradient(function, sleep, weights, x))
    return Estimates(torch.stack(values), torch.stack(gradients))


def ridge_weights(model: LatentVariableModel, x: Tensor) -> Callable:
    regression = KernelRidge(tuple(x.shape[1:]), ridge=RIDGE).double()
    regression.initialise(model.sleep(INITIAL_SAMPLES).x)
    freeze(regression)
    return lambda sleep: (None, regression.fit(sleep.x).weights(x))


def network_weights(network: nn.Module, x: Tensor, steps: int) -> Callable:
    """W_nb = ∂f(x_b)/∂y_n through the unrolled steps."""

    def weigh(sleep) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        targets = sleep.joint.log_joint.detach().requires_grad_()
        predicted = network_expectation(network, sleep.x, targets, x, steps, INNER_RATE)
        columns = [torch.autograd.grad(value, targets, retain_graph=True)[0] for value in predicted]
        return predicted.detach(), torch.stack(columns, dim=1)

    return weigh


def network_loss(model: LatentVariableModel, network: nn.Module) -> Tensor:
    with torch.no_grad():
        sleep = model.sleep(BATCH)
        standard = StandardUnits(sleep.joint.log_joint).of(sleep.joint.log_joint)
    return squared_error(network(sleep.x), standard)


def measure(name: str, model: LatentVariableModel) -> None:
    """Print one model's part of the table."""
    with torch.no_grad():
        x = model.sleep(OBSERVATIONS).x
    truth = Truth(model, x)
    print(f"\n{name:36}" + "".join(f"{column:>8}" for column in ("J", "rms", "bias", "cosine", "size", "drift")))

    def show(label: str, estimates: Estimates) -> None:
        print(f"{label:36}{estimates.row(truth)}", flush=True)

    show("exact posterior draws", of_particles(model, x, truth.draws))
    ridge = ridge_weights(model, x)
    for form in FORMS:
        for count in COUNTS:
            show(f"KRR {form.replace('_', '-')}, N = {count}", of_weights(model, x, form, count, ridge))
    for seed in range(SAMPLERS):
        for particles in (1, 5) if seed == 0 else (1,):
            torch.manual_seed(seed)
            sampler = Sampler(features(x), tuple(x.shape[1:]), 2, 64).double()
            trained(sampler, lambda s=sampler, m=particles: sampler_error(model, s, BATCH, m))  # type: ignore[misc]
            drawn = of_particles(model, x, lambda s=sampler, m=particles: s(x, m))  # type: ignore[misc]
            show(f"AL-P, {particles} particle{'s' * (particles > 1)}, seed {seed}", drawn)
    network = Regressor(features(x), tuple(x.shape[1:])).double()
    trained(network, lambda: network_loss(model, network))
    for steps in INNER_STEPS:
        weigh = network_weights(network, x, steps)
        show(f"AL-NN, N = {COUNTS[-1]}, {steps} steps", of_weights(model, x, "direct", COUNTS[-1], weigh))


def main() -> None:
    """Print the table."""
    for name, make in MODELS.items():
        torch.manual_seed(1)
        measure(name, make())


if __name__ == "__main__":
    main()
