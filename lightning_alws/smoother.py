"""The extended Kalman smoother: where the states of a state space model with Gaussian steps most likely were.

    m_t, P_t from the filter, linearised at its own estimates;   s_t = m_t + G_t (s_{t+1} − f(m_t)),  G = P Fᵀ P'⁻¹

Exact where the model is linear (Rauch, Tung, Striebel, "Maximum likelihood estimates of linear dynamic systems", AIAA
Journal 3, 1965); the observation is linearised anew at the estimate that it corrects (Bell, Cathey, "The iterated
Kalman filter update as a Gauss-Newton method", IEEE TAC 38, 1993). Elsewhere it errs, and nothing here asks it not to:
it only tells amortised learning what of a series to regress on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.likelihoods import DiagonalGaussian, Likelihood
from lightning_alws.state_space import StateSpaceModel

CORRECTIONS = 2  # Gauss-Newton steps at each observation
DIFFERENCE = 1e-2  # states differ by 1 or so: differences this far apart lose four of float32's seven digits
FURTHEST = 10.0  # standard deviations: an innovation beyond tells that the filter has lost its way, no more


@torch.no_grad()
def innovations(model: StateSpaceModel, x: Tensor) -> Tensor:
    """(s_t − f(s_{t−1}))/q of the smoothed states, what the process noise must have been, at most ±10.

    Args:
        model: its three conditional laws are ``DiagonalGaussian``.
        x: series (B, T, D_x).

    Returns:
        (B, T, D_z); 0 where the smoother fails.

    Raises:
        UserError: a law is another.
    """
    states = smoothed_states(model, x)
    first, steps = _gaussian(model.initial()), _gaussian(model.transition(states[:, :-1].flatten(0, 1)))
    beginning = (states[:, 0] - first.mean) / first.log_scale.exp()
    following = (states[:, 1:].flatten(0, 1) - steps.mean) / steps.log_scale.exp()
    surprise = torch.cat([beginning[:, None], following.view_as(states[:, 1:])], dim=1)
    return surprise.nan_to_num(0.0, 0.0, 0.0).clamp(-FURTHEST, FURTHEST)


@torch.no_grad()
def smoothed_states(model: StateSpaceModel, x: Tensor) -> Tensor:
    """E[z_t|x] to the smoother's approximation, for series x (B, T, D_x), shape (B, T, D_z)."""
    first = _gaussian(model.initial())
    mean, covariance = first.mean.expand(len(x), -1), _covariance(first)
    predicted, filtered, slopes = [], [], []
    for t, seen in enumerate(x.unbind(1)):
        if t:
            slopes.append(_slope(lambda z: model.transition(z).mean, mean))
            law = _gaussian(model.transition(mean))
            mean, covariance = law.mean, slopes[-1] @ covariance @ slopes[-1].mT + _covariance(law)
        predicted.append((mean, covariance))
        mean, covariance = _corrected(model, mean, covariance, seen)
        filtered.append((mean, covariance))
    states = [mean]
    for t in range(len(predicted) - 2, -1, -1):
        mean, covariance = filtered[t]
        ahead, spread = predicted[t + 1]
        gain = torch.linalg.solve_ex(spread, slopes[t] @ covariance)[0].mT
        states.append(mean + (gain @ (states[-1] - ahead)[..., None])[..., 0])
    return torch.stack(states[::-1], dim=1)


def _corrected(model: StateSpaceModel, mean: Tensor, covariance: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of z (B, D_z) given in addition an observation (B, D_x), in information form."""
    prior = torch.linalg.inv_ex(covariance)[0]
    state = mean
    for _ in range(CORRECTIONS):
        law = _gaussian(model.emission(state[:, None]))
        slope = _slope(lambda z: model.emission(z[:, None]).mean[:, 0], state)
        weighted = slope / _variance(law)[..., None]
        posterior = torch.linalg.inv_ex(prior + slope.mT @ weighted)[0]
        pull = weighted.mT @ (seen - law.mean[:, 0])[..., None] - prior @ (state - mean)[..., None]
        state = state + (posterior @ pull)[..., 0]
    return state, posterior


def _slope(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """∂f_i/∂z_j at each of B rows z (B, D), shape (B, K, D), by central differences in one call."""
    away = DIFFERENCE * torch.eye(z.shape[1]).to(z)
    ahead, behind = function(torch.cat([z[:, None] + away, z[:, None] - away]).flatten(0, 1)).chunk(2)
    return ((ahead - behind) / (2 * DIFFERENCE)).view(*z.shape, -1).mT


def _gaussian(law: Likelihood) -> DiagonalGaussian:
    if not isinstance(law, DiagonalGaussian):
        raise UserError(
            f"a {type(law).__name__} is among the laws of the state space model, but a smoother's innovations need "
            "DiagonalGaussian ones; set model.innovations to 0."
        )
    return law


def _variance(law: DiagonalGaussian) -> Tensor:
    """σ² of a law with events (..., D), which broadcasts to its rows, (1 or B, D or 1)."""
    return (2 * law.log_scale).exp().reshape(-1, law.log_scale.shape[-1] if law.log_scale.dim() else 1)


def _covariance(law: DiagonalGaussian) -> Tensor:
    """diag σ² (1 or B, D, D)."""
    return _variance(law).expand(-1, law.mean.shape[-1]).diag_embed()
