"""The likelihood of a whole series of blowfly counts: where its maximum lies, and how well its gradient is estimated.

    python benchmarks/blowfly_likelihood.py maximum     # needs blowfly.csv in $ALWS_DATA
    python benchmarks/blowfly_likelihood.py gradient

``maximum`` climbs the exact likelihood (quadrature) times the priors of configs/experiments/blowfly.yaml, for a given
lag, and prints how many of the ten statistics of the data lie in the central 95 % of 200 simulations. ``gradient``
prints the error of amortised estimates of ∇ log p(x) over series x ~ p_θ of 180 counts, at parameters near the fit of
that config, over the root mean square of the exact gradient: the regression of the whole series as published, and one
that is split over time. In the latter transitions are drawn given what was observed before them, and regressed on three
numbers, x_{t−τ}, x_{t−1} and x_t, since given the lag their latents depend on no others.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from callbacks.blowfly import PopulationFigure
from datamodules import Blowfly
from lightning_alws.kernels import MedianKernel
from lightning_alws.metrics.blowfly import log_transition
from lightning_alws.models.blowfly import BlowflySimulator, gamma
from lightning_alws.population import NAMES, Population, period
from lightning_alws.quantile_kernel import QuantileKernel
from lightning_alws.regression import KernelRidge, freeze

PRIORS = {
    "births": (2, 2),
    "capacity": (5, 0.5),
    "mortality": (-1, 0.4),
    "birth_noise": (-0.5, 1),
    "survival_noise": (-0.5, 1),
}
FITTED = Population(17.0, 325.0, 0.31, 0.35, 0.57, 0.09)
SERIES, REPEATS, COUNT = 6, 3, 3000


def with_lag(population: Population, lag: int, length: int = 180) -> BlowflySimulator:
    """A model in float64 whose lag is known."""
    model = BlowflySimulator((length,), 20, population).double()
    model.lag_logits.requires_grad_(False).fill_(-1e3)[lag - 1] = 0.0
    return model


def exact(model: BlowflySimulator, x: Tensor, lag: int) -> Tensor:
    """log p_θ(x | lag) of a series (T,)."""
    delayed, last = model.contexts(x[None], torch.tensor([lag]))
    return log_transition(model, delayed[0], last[0], x).sum()


def climb(model: BlowflySimulator, x: Tensor, lag: int) -> None:
    """Move the model to the most probable parameters given a series (T,) and the lag."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.LBFGS(parameters, max_iter=40, max_eval=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        prior = [((model.value(n).log() - m) / s).square().sum() / 2 for n, (m, s) in PRIORS.items()]
        loss = torch.stack(prior).sum() - exact(model, x, lag)
        loss.backward()
        return loss

    optimiser.step(closure)


def maximum() -> None:
    """The most probable parameters of the blowflies, and what they make."""
    x = Blowfly().series().double()
    for lag in (7, 8):
        model = with_lag(Population(7.5, 600.0, 0.32, 1.1, 0.3, 0.15), lag)
        climb(model, x[0], lag)
        with torch.no_grad():
            simulated = model.simulate(200)[1]
            ranks = PopulationFigure.ranks(simulated, x)
            inside = int(((ranks >= 0.025) & (ranks <= 0.975)).sum())
            fitted = ", ".join(f"{name} {float(model.value(name)):.4g}" for name in NAMES)
            print(
                f"lag {lag}: log p(x) {float(exact(model, x[0], lag)):.1f}, {fitted}; {inside} of 10 inside, "
                f"period {float(period(simulated).median()):.1f}",
                flush=True,
            )


class Logarithm(nn.Module):
    """log x."""

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.log()


def regress(kernel: Callable, ridge: float, x: Tensor, query: Tensor) -> Tensor:
    """W (N, B)."""
    regression = KernelRidge(tuple(x.shape[1:]), kernel, ridge, intercept=True).double()
    freeze(regression)
    return regression.fit(x).weights(query)


def whole(model: BlowflySimulator, x: Tensor, lag: int, kernel: Callable, ridge: float) -> Tensor:
    """Ĵ of each series (B, T), as published: one regression of log p(z, x) on all of x."""
    sleep = model.sleep(COUNT)
    with torch.no_grad():
        weights = regress(kernel, ridge, sleep.x, x)
    return sleep.joint.expectation(weights, x)


def split(model: BlowflySimulator, x: Tensor, lag: int, bandwidth: float, ridge: float) -> Tensor:
    """Ĵ of each series (B, T), by a regression of its own on transitions from its own past."""
    values = []
    for series in x:
        with torch.no_grad():
            delayed, last = (context[0] for context in model.contexts(series[None], torch.tensor([lag])))
            rows = torch.randint(len(series), (COUNT,))
            noises = [gamma(model.value(name), (COUNT,)) for name in ("birth_noise", "survival_noise")]
            noise = (model.value("observation_noise") * torch.randn(COUNT).double()).exp()
            drawn = model.state(delayed[rows], last[rows], *noises) * noise
            kernel = functools.partial(QuantileKernel, bandwidth=bandwidth)
            features = torch.stack([delayed[rows], last[rows], drawn / last[rows]], dim=1)
            query = torch.stack([delayed, last, series / last], dim=1)
            weights = regress(kernel, ridge, features, query).sum(1)
        values.append(weights @ model.log_transition(delayed[rows], last[rows], *noises, drawn))
    return torch.stack(values)


def gradient() -> None:
    """The table of errors."""
    model, lag = with_lag(FITTED, 7), 7
    parameters = [model.get_parameter(f"log_{name}") for name in NAMES]

    def gradients(values: Tensor) -> Tensor:
        rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in values]
        return torch.stack([torch.stack(row) for row in rows])

    x = model.simulate(SERIES)[1]
    truth = torch.cat([gradients(exact(model, series, lag)[None]) for series in x])
    size = truth.square().mean(0).sqrt()
    print(
        "exact gradient, RMS:", ", ".join(f"{n} {float(s):.1f}" for n, s in zip(NAMES, size, strict=True)), flush=True
    )
    on_log = functools.partial(MedianKernel, features=Logarithm)
    rows: list[tuple[str, Callable[[], Tensor]]] = [
        (f"whole series, {name}, ridge {ridge:g}", functools.partial(whole, model, x, lag, kernel, ridge))
        for name, kernel in (("x", MedianKernel), ("log x", on_log))
        for ridge in (1e-3, 0.1)
    ]
    rows += [
        (f"split, bandwidth {width:g}, ridge {ridge:g}", functools.partial(split, model, x, lag, width, ridge))
        for width, ridge in ((1.0, 0.1), (1.0, 1.0), (0.5, 1.0))
    ]
    for name, estimate in rows:
        started = time.perf_counter()
        errors = torch.stack([gradients(estimate()) for _ in range(REPEATS)]) - truth
        seconds = (time.perf_counter() - started) / REPEATS
        rms = float(errors.square().mean().sqrt() / truth.square().mean().sqrt())
        bias = float(errors.mean(0).square().mean().sqrt() / truth.square().mean().sqrt())
        print(f"{name:36} error {rms:5.2f}, of its mean over {REPEATS} {bias:5.2f}, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    if sys.argv[1:] not in (["maximum"], ["gradient"]):
        sys.exit(f"usage: python {sys.argv[0]} maximum|gradient")
    globals()[sys.argv[1]]()
