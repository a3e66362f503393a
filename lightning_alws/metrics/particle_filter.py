"""log p_θ(x) of a series under any state space model, by the bootstrap particle filter.

    p(x) ≈ Π_t (1/K) Σ_k p_θ(x_t|z_t^k),   z_t^k ~ p_θ(z_t|z_{t−1}^{a_k}),   a_k drawn by p_θ(x_{t−1}|z_{t−1}^k)

Unbiased for p(x), so that its logarithm is on average a little too low. Source: Gordon, Salmond, Smith, "Novel approach
to nonlinear/non-Gaussian Bayesian state estimation", IEE Proceedings F 140, 1993; systematic resampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_alws.state_space import StateSpaceModel


@torch.no_grad()
def log_likelihood(model: StateSpaceModel, x: Tensor, particles: int = 2000) -> Tensor:
    """log p_θ(x) in nats of series x (B, T, D_x), shape (B,).

    Args:
        model: the state space model; its own number of steps does not matter.
        x: the series.
        particles: K, for each series; their spread must reach each observation.
    """
    count, rows = len(x), len(x) * particles
    z, total, weights = model.sample_path(rows, 1)[:, 0], x.new_zeros(count), None
    for t in range(x.shape[1]):
        if weights is not None:
            z = model.transition(z[_ancestors(weights)]).sample()
        seen = x[:, t].repeat_interleave(particles, 0)[:, None]
        log_weights = model.emission(z[:, None]).log_prob(seen).view(count, particles)
        total = total + torch.logsumexp(log_weights, 1) - math.log(particles)
        weights = log_weights.softmax(1)
    return total


def _ancestors(weights: Tensor) -> Tensor:
    """Rows of all particles by weights (B, K), one stratified by equal distances and a random offset per series."""
    count, particles = weights.shape
    offsets = torch.rand(count, 1, device=weights.device, dtype=weights.dtype)
    places = (torch.arange(particles, device=weights.device) + offsets) / particles
    chosen = torch.searchsorted(weights.cumsum(1), places).clamp_max(particles - 1)
    return (chosen + particles * torch.arange(count, device=weights.device)[:, None]).flatten()
