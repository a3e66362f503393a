"""Errors of ∇_b log p(x) on the softplus toy: amortised learning beside VAE, IWAE and reweighted wake-sleep.

Counted are evaluations of log p_θ(z, x), N for each estimate: amortised learning draws N sleep samples, which serve
every x at once; a rival averages N/K independent sets of K draws for each x by itself. For B observations a rival thus
has B times the evaluations. What fitting its q cost is not counted, nor is the regression's factorisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_alws.metrics.gradients import RelativeError, amortised_gradients, relative_error
from lightning_alws.metrics.variational import MeanField, fit_mean_field, importance_gradient
from lightning_alws.models.softplus_toy import SoftplusGenerator
from lightning_alws.regression import KernelRidge

AMORTISED = ("plug_in", "plug_in_centred", "direct", "direct_centred")


@dataclass(frozen=True)
class Rival:
    """A variational method.

    Attributes:
        particles: K.
        matches_moments: q has the posterior's mean and variances, where the sleep phase of reweighted wake-sleep ends
            (its wake phase has no gradient for K = 1); otherwise q maximises the bound L_K.
    """

    particles: int
    matches_moments: bool


RIVALS = {
    "vae": Rival(1, False),  # and IWAE-1, which is the same
    "iwae_10": Rival(10, False),
    "iwae_100": Rival(100, False),
    "rws_1": Rival(1, True),
    "rws_10": Rival(10, True),
    "rws_100": Rival(100, True),
}


@dataclass(frozen=True)
class Counts:
    """How much is measured.

    Args:
        observations: B, the x over which errors are averaged.
        held_out: N_v, observations simulated for the centred estimates; spread evenly over p_θ(x), unlike those of
            ``Learning.centring``, whose own noise in one step is about 1/√N_v of the RMS gradient.
        repeats: of amortised estimates.
        rival_repeats: of the rivals' estimates.
        fit_steps: Adam steps for each q.
    """

    observations: int = 50
    held_out: int = 200
    repeats: int = 20
    rival_repeats: int = 4
    fit_steps: int = 300


def representative(model: SoftplusGenerator, count: int) -> Tensor:
    """``count`` observations evenly spread over p_θ(x): of a hundred times as many draws every hundredth by size."""
    return model.sleep(100 * count).x.sort(0).values[50::100]


@torch.no_grad()
def amortised_errors(
    model: SoftplusGenerator, regression: KernelRidge, x: Tensor, sleep_samples: int, counts: Counts
) -> dict[str, RelativeError]:
    """The error of each form of the amortised gradient at x (B, 1), by name, from ``sleep_samples`` joint evaluations.

    Raises:
        UserError: the regression failed.
    """
    held_out = representative(model, counts.held_out)
    draws = [amortised_gradients(model, regression, x, sleep_samples, held_out) for _ in range(counts.repeats)]
    exact = model.exact_gradient(x)
    return {name: relative_error(torch.stack([draw[name] for draw in draws]), exact) for name in AMORTISED}


@torch.no_grad()
def rival_errors(model: SoftplusGenerator, x: Tensor, evaluations: int, counts: Counts) -> dict[str, RelativeError]:
    """The error of each rival's gradient at x (B, 1), by name, from ``evaluations`` joint evaluations for each x."""
    exact = model.exact_gradient(x)
    mean, variance = model.posterior_moments(x)
    matched = MeanField(mean, 0.5 * variance.log())
    errors = {}
    for name, rival in RIVALS.items():
        q = matched
        if not rival.matches_moments:
            sets = max(4, 100 // rival.particles)
            q = fit_mean_field(model, x, matched, rival.particles, sets, counts.fit_steps)
        draws = [importance_gradient(model, q, x, rival.particles, evaluations) for _ in range(counts.rival_repeats)]
        errors[name] = relative_error(torch.stack(draws), exact)
    return errors
