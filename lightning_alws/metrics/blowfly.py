"""The exact likelihood of a population with a delay, by quadrature: the truth beside what is learnt, never learnt from.

    log p_θ(x) = log Σ_k p(τ = k) Π_t ∫∫ p(e) p(ε) p_θ(x_t | x_{t−k}, x_{t−1}, e, ε) de dε

What is observed enters the recursion, so that given the lag the transitions are independent, and each needs two
integrals only. They are taken by the trapezoidal rule in u with log e = u − exp(−u), and ε alike, whose error falls
exponentially with the spacing for integrands as smooth as these; towards 0, where the density may be infinite, the
nodes lie ever wider apart in the logarithm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_alws.likelihoods import LOG_2_PI
from lightning_alws.models.blowfly import BlowflySimulator, log_gamma

NEGLIGIBLE = 40.0  # nats below the density's maximum


def gamma_rule(scale: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights (Q,) for expectations under the gamma distribution of mean 1 and standard deviation ``scale``.

    The weights are differentiable in the scale. What lies below the least node, which is e⁻²³ where the density
    at 0 is infinite, counts as lying there.
    """
    with torch.no_grad():
        grid = torch.linspace(-3.0, 7.0, 3001, dtype=scale.dtype)
        logs = grid - (-grid).exp()
        density = (logs - logs.exp()) / scale.square()
        inside = grid[density > density.max() - NEGLIGIBLE]
        count = int((inside[-1] - inside[0]) / spacing) + 2
        places = torch.linspace(float(inside[0]), float(inside[-1]), count, dtype=scale.dtype)
        nodes = (places - (-places).exp()).exp()
        widths = (places[1] - places[0]) * (1 + (-places).exp())
    weights = (log_gamma(nodes, scale) + nodes.log()).exp() * widths
    rest = (1 - weights.sum()).clamp_min(0)
    return nodes, torch.cat([weights[:1] + rest, weights[1:]])


def log_transition(model: BlowflySimulator, delayed: Tensor, last: Tensor, x: Tensor) -> Tensor:
    """log p_θ(x_t | x_{t−τ}, x_{t−1}), all of shape (M,), differentiable in θ; give the model in float64."""
    scale = model.log_observation_noise
    noises = [model.value(name) for name in ("birth_noise", "survival_noise")]
    # The integrand is as narrow as the observation noise, or as the gamma density in the logarithm.
    spacings = [float(torch.min(0.5 * scale.exp(), 0.2 * noise).detach().clamp_max(0.1)) for noise in noises]
    rules = [gamma_rule(noise, spacing) for noise, spacing in zip(noises, spacings, strict=True)]
    (births, birth_weights), (survival, survival_weights) = rules
    state = model.state(delayed[:, None, None], last[:, None, None], births[:, None], survival)
    residual = (x.log()[:, None, None] - state.log()) * (-scale).exp()
    log_weights = birth_weights.log()[:, None] + survival_weights.log()
    log_density = -0.5 * residual.square() + log_weights
    return log_density.flatten(1).logsumexp(1) - 0.5 * LOG_2_PI - scale - x.log()


def log_likelihood_by_lag(model: BlowflySimulator, x: Tensor) -> Tensor:
    """log p_θ(x | τ = k) of one series (T,), for k = 1 … lags, shape (lags,); differentiable in θ."""
    values = []
    for lag in range(1, model.lags + 1):
        delayed, last = model.contexts(x[None], torch.tensor([lag], device=x.device))
        values.append(log_transition(model, delayed[0], last[0], x).sum())
    return torch.stack(values)


def log_likelihood(model: BlowflySimulator, x: Tensor) -> Tensor:
    """log p_θ(x) of one series (T,), a scalar; differentiable in θ."""
    return (log_likelihood_by_lag(model, x) + model.log_lags).logsumexp(0)


def lag_posterior(model: BlowflySimulator, x: Tensor) -> Tensor:
    """p_θ(τ = k | x) of one series (T,), shape (lags,)."""
    return (log_likelihood_by_lag(model, x) + model.log_lags).softmax(0)
