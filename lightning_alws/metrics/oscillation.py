"""What a noisy oscillator does when left to itself: its period, how fast its phase diffuses, how far one step spreads.

None of them depends on the coordinates of the latent state, which no data fix: over a long time every phase that is
defined on the state diffuses alike, and spreads are measured in what is observed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Oscillation:
    """Period in steps; phase diffusion √(d Var[φ_{t+L} − φ_t]/dL) in radians per √step; one-step spread, of x."""

    period: float
    diffusion: float
    spread: float


def free_running(paths: Tensor, lag: int = 48) -> tuple[float, float]:
    """Period and phase diffusion of latent paths z (N, T, 2), T > 2 lag, on their limit cycle.

    The phase is the angle about the mean state, unwound. How uneven the cycle is in these coordinates adds to the
    variance of its advance over a lag of some periods, but the same over two such lags: the difference is free of it.

    Returns:
        Both not a number where the states do not go round.
    """
    advance = _turns(paths, paths.double().mean((0, 1))).cumsum(1)
    once, twice = (advance[:, step:] - advance[:, :-step] for step in (lag, 2 * lag))
    speed = float(once.mean().abs()) / lag
    if not speed > 0:
        return math.nan, math.nan
    return 2 * math.pi / speed, float(((twice.var() - once.var()).clamp_min(0) / lag).sqrt())


def mean_period(paths: Tensor, centre: Tensor) -> float:
    """2π over the mean advance of the angle about ``centre`` (2,) in one step of paths z (N, T, 2); in steps."""
    return 2 * math.pi / float(_turns(paths, centre).mean().abs())


def _turns(paths: Tensor, centre: Tensor) -> Tensor:
    """The turn about the centre in each step of paths (N, T, 2), in [−π, π), float64 (N, T − 1)."""
    away = paths.double() - centre.to(paths.device)
    angle = torch.atan2(away[..., 1], away[..., 0])
    return torch.remainder(angle.diff(dim=1) + math.pi, 2 * math.pi) - math.pi


def one_step_spread(z: Tensor, draw_next: Callable[[Tensor], Tensor], picture: Callable[[Tensor], Tensor]) -> float:
    """The standard deviation of E[x_t|z_t] given z_{t−1}, RMS over states z (M, D_z) and the D_x observed numbers.

    Args:
        z: states z_{t−1}.
        draw_next: draws z_t for each.
        picture: E[x_t|z_t], (M, D_x).
    """
    difference = picture(draw_next(z)) - picture(draw_next(z))  # twice the variance
    return float((0.5 * difference.double().square().mean()).sqrt())


def measure(
    paths: Tensor, draw_next: Callable[[Tensor], Tensor], picture: Callable[[Tensor], Tensor], lag: int = 48
) -> Oscillation:
    """All three from free-running paths z (N, T, 2) whose beginnings are forgotten."""
    return Oscillation(*free_running(paths, lag), one_step_spread(paths.flatten(0, 1), draw_next, picture))
