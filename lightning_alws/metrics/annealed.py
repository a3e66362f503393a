"""Annealed importance sampling of log p(x) with Hamiltonian Monte Carlo, for continuous latents and without an encoder.

From the prior to the posterior through f_t(z) = p(z) p(x|z)^β_t, 0 = β_0 < … < β_T = 1:

    log w = Σ_t (β_t − β_{t−1}) log p(x|z_{t−1}),      z_0 ~ p(z),   z_t ~ HMC_t(· | z_{t−1}) leaving f_t invariant,

with E[w] = p(x) exactly, for however few temperatures, so that log (1/M) Σ_m w_m is on average too small. The same
chain run backwards from an exact draw z_{T−1} ~ p(z|x) has E[1/w] = 1/p(x), so that −log (1/M) Σ_m 1/w_m is on average
too large; data simulated from the model come with such a draw, the z they were made from, and the distance between
the two bounds tells how far the first can be off.

Sources: Neal, "Annealed importance sampling", Statistics and Computing 11, 2001; Wu, Burda, Salakhutdinov, Grosse, "On
the quantitative analysis of decoder-based generative models", ICLR 2017 (https://arxiv.org/abs/1611.04273); Grosse,
Ghahramani, Adams, "Sandwiching the marginal likelihood using bidirectional Monte Carlo", 2015
(https://arxiv.org/abs/1511.02543).

**Tuning.** A chain that adapts its step to its own past loses E[w] = p(x): the step then depends on z_{t−1}, and a
transition no longer leaves f_t invariant. Here chains of a pilot, drawn apart and then thrown away, find for each
temperature a mass matrix, for each image the step that is accepted as often as wished. They are constants in the run
that counts, and both expectations above hold exactly, given the pilot and so on the whole.

All draws come from torch's global generators: wrap the calls in :func:`lightning_alws.noise.seeded`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_alws.errors import check_at_least
from lightning_alws.generative import LatentVariableModel
from lightning_alws.metrics.hamiltonian import Move, State, Target, differentiable, transition
from lightning_alws.metrics.likelihood import LikelihoodEstimate, WeightAccumulator, chunks

ACCEPTANCE = (
    0.65  # optimal for HMC in many dimensions: Beskos et al., Bernoulli 19, 2013 (https://arxiv.org/abs/1001.4460)
)
EXPONENT = 3.0  # of the schedule
PILOT_CHAINS = 2
PILOT_TEMPERATURES = (50, 200)  # at least and at most
PILOT_GAIN = 0.3  # change of the log step for an acceptance off by one; an average over some six temperatures
PILOT_MEMORY = 0.8  # weight of the temperatures before in the mass matrix: an average over some five of them
QUARTER = math.pi / 2  # of a period of unit frequency: a trajectory of that length draws anew, a longer one turns back
FIRST_STEP = 0.5  # half a standard deviation of a standard normal prior; the pilot begins by correcting it
FIRST_TRANSITIONS = 20


@dataclass(frozen=True)
class Annealing:
    """Settings; an image costs chains · temperatures · leapfrog_steps gradients of log p(x|z) with respect to z.

    On binarised MNIST (16 latents, DCGAN decoder of width 16) the gap was 0.75 ± 0.23 nats with 4 chains, 450
    temperatures and 2 leapfrog steps, and 1.11 ± 0.29 at equal cost with 300 and 3.

    Args:
        chains: M, independent chains for each image.
        temperatures: T, the number of steps of β from 0 to 1.
        leapfrog_steps: of each Hamiltonian trajectory; there is one at each temperature in between.

    Raises:
        UserError: a number below 1.
    """

    chains: int = 4
    temperatures: int = 500
    leapfrog_steps: int = 2

    def __post_init__(self) -> None:
        check_at_least(
            "log_likelihood.annealing",
            chains=(self.chains, 1),
            temperatures=(self.temperatures, 1),
            leapfrog_steps=(self.leapfrog_steps, 1),
        )


@dataclass(frozen=True)
class AnnealedEstimate(LikelihoodEstimate):
    """Estimated log-likelihoods of B observations; the effective samples are at most the number of chains.

    Attributes:
        acceptance: mean probability of acceptance over chains and temperatures, shape (B,), float64; NaN for a single
            temperature, which needs no transition.
    """

    acceptance: Tensor


@dataclass(frozen=True)
class Bounds:
    """Both bounds on log p(x) for the same B simulated observations.

    Attributes:
        lower: too small on average, as for any data.
        upper: too large on average.
    """

    lower: AnnealedEstimate
    upper: AnnealedEstimate

    @property
    def gap(self) -> Tensor:
        """Upper less lower bound in nats, shape (B,): on average more than the error of each."""
        return self.upper.log_likelihood - self.lower.log_likelihood


@dataclass(frozen=True)
class Chains:
    """Where N annealed chains ended.

    Attributes:
        state: of z_{T−1}, whose weights count for the posterior; of chains that went backwards of z_0.
        log_weights: log w, shape (N,), float64.
        acceptance: mean probability of acceptance over temperatures, shape (N,), float64; NaN without a transition.
    """

    state: State
    log_weights: Tensor
    acceptance: Tensor


def schedule(temperatures: int) -> Tensor:
    """β_t = (t/T)³ for t = 0 … T, shape (T + 1,), float64.

    Where the data say something, log p(x|z) varies as 1/β under f_β, and steps that all cost the same grow with β. On
    two linear-Gaussian models with exact transitions, one chain's bias at T = 60 was 1.6 and 4.4 nats where the
    sigmoid of Wu et al. had 13.9 and 14.8; exponents of 3 to 6 differ little. Friel and Pettitt (Journal of the Royal
    Statistical Society B 70, 2008) found the same for integrals over β.
    """
    return torch.linspace(0, 1, temperatures + 1, dtype=torch.float64) ** EXPONENT


def tune(model: LatentVariableModel, x: Tensor, settings: Annealing) -> list[Move]:
    """The T − 1 moves for observations x (B, *event), one step for each; to be called within :func:`differentiable`.

    The steps follow the narrowing of f_β by Robbins and Monro's recursion with a constant gain,
    log ε ← log ε + gain · (acceptance − 0.65). The mass matrix is the precision of f_β, averaged over observations, as
    E[∇log f ∇log fᵀ] = −E[∇∇ᵀ log f].
    """
    count = min(max(settings.temperatures, PILOT_TEMPERATURES[0]), PILOT_TEMPERATURES[1])
    target = Target(model, x.repeat_interleave(PILOT_CHAINS, dim=0))
    state = target(model.sample_prior(len(target.x)))
    dim = state.z[0].numel()
    narrowest = 1 / state.z.flatten(1).double().var(0).mean()
    identity = torch.eye(dim, dtype=torch.float64, device=x.device)
    outer, weight = torch.zeros_like(identity), 0.0
    factor = identity.to(state.z)
    log_step = torch.full((len(x),), math.log(FIRST_STEP), dtype=torch.float64, device=x.device)
    longest = math.log(QUARTER / settings.leapfrog_steps)
    pilot = []
    for index, beta in enumerate(schedule(count)[1:].tolist()):
        for _ in range(1 if index else FIRST_TRANSITIONS):
            move = Move(log_step.exp(), factor)
            state, acceptance = transition(target, state, beta, move.repeated(PILOT_CHAINS), settings.leapfrog_steps)
            log_step = log_step + PILOT_GAIN * (acceptance.view(-1, PILOT_CHAINS).mean(1) - ACCEPTANCE)
            log_step = log_step.clamp_max(longest)
        pilot.append(Move(log_step.exp(), factor))
        slope = state.slope(beta).flatten(1).double().nan_to_num(0.0, 0.0, 0.0)
        outer = PILOT_MEMORY * outer + slope.T @ slope
        weight = PILOT_MEMORY * weight + len(slope)
        # As if another D rows had shown no direction steeper than any other: few rows say little of a matrix. A prior
        # with walls has no slope inside of them, but a width.
        spread = torch.maximum(outer.diagonal().mean() / weight, narrowest)
        precision = (outer + dim * spread * identity) / (weight + dim)
        factor = torch.linalg.inv(torch.linalg.cholesky(precision)).to(factor)
    # Transition t of T lies at β of the place t/T; the pilot's at 1/P, …, 1.
    places = (max(round(t / settings.temperatures * count), 1) for t in range(1, settings.temperatures))
    return [pilot[place - 1] for place in places]


def anneal(target: Target, z: Tensor, moves: list[Move], leapfrog_steps: int, backwards: bool = False) -> Chains:
    """One chain for each row of the target.

    Args:
        z: where the chains start: draws from the prior, or ``backwards`` draws from the posterior, (N, ...).
        moves: for each of the T − 1 transitions, with a step for each row.
        leapfrog_steps: of each transition.
    """
    betas = schedule(len(moves) + 1).tolist()
    order = range(len(moves), -1, -1) if backwards else range(len(moves) + 1)
    state = target(z)
    log_weights = torch.zeros_like(state.log_likelihood)
    acceptances = torch.zeros_like(log_weights)
    for t in order:
        # z_t, which lies between the transitions t and t + 1, counts for the way from β_t to β_{t+1}.
        log_weights = log_weights + (betas[t + 1] - betas[t]) * state.log_likelihood
        if t != order[-1]:
            level = t if backwards else t + 1
            state, acceptance = transition(target, state, betas[level], moves[level - 1], leapfrog_steps)
            acceptances = acceptances + acceptance
    return Chains(state, log_weights, acceptances / len(moves) if moves else acceptances.fill_(math.nan))


def annealed_log_likelihood(
    model: LatentVariableModel, x: Tensor, settings: Annealing, chunk_size: int = 1000
) -> AnnealedEstimate:
    """log p(x_b) ≈ log (1/M) Σ_m w_bm, a lower bound on average.

    Args:
        model: ``latents_are_real``; log p(z) and log p(x|z) differentiable in z.
        x: observations (B, *event).
        settings: chains, temperatures, leapfrog steps.
        chunk_size: rows (observations times chains) evaluated at a time, at least one observation.

    Raises:
        UserError: a number below 1.
    """
    check_at_least("annealing", chunk_size=(chunk_size, 1))
    with differentiable(model, x.device):
        parts = [
            _forwards(model, part, tune(model, part, settings), settings)
            for part in x.clone().split(max(1, chunk_size // settings.chains))
        ]
    return _joined(parts)


def simulated_bounds(model: LatentVariableModel, count: int, settings: Annealing, chunk_size: int = 1000) -> Bounds:
    """Lower and upper bound on log p(x_b) for ``count`` observations drawn from the model; arguments as above.

    The chains of one observation all start backwards from the one z that it was made from: their weights depend on
    each other, and the mean of 1/w is still right on average.
    """
    check_at_least("annealing", count=(count, 1), chunk_size=(chunk_size, 1))
    lower, upper = [], []
    with differentiable(model, next(model.parameters()).device):
        for size in chunks(count, max(1, chunk_size // settings.chains)):
            z = model.sample_prior(size)
            x = model.likelihood(z).sample()
            moves = tune(model, x, settings)
            lower.append(_forwards(model, x, moves, settings))
            upper.append(_backwards(model, x, z, moves, settings))
    return Bounds(_joined(lower), _joined(upper))


def _forwards(model: LatentVariableModel, x: Tensor, moves: list[Move], settings: Annealing) -> AnnealedEstimate:
    z = model.sample_prior(len(x) * settings.chains)
    log_weights, acceptance = _chains(model, x, z, moves, settings, backwards=False)
    weights = WeightAccumulator(len(x), x.device)
    weights.add(log_weights)
    estimate = weights.estimate()
    return AnnealedEstimate(estimate.log_likelihood, estimate.effective_samples, acceptance)


def _backwards(
    model: LatentVariableModel, x: Tensor, z: Tensor, moves: list[Move], settings: Annealing
) -> AnnealedEstimate:
    z = z.repeat_interleave(settings.chains, dim=0)
    log_weights, acceptance = _chains(model, x, z, moves, settings, backwards=True)
    weights = WeightAccumulator(len(x), x.device)
    weights.add(-log_weights)
    estimate = weights.estimate()
    return AnnealedEstimate(-estimate.log_likelihood, estimate.effective_samples, acceptance)


def _chains(
    model: LatentVariableModel, x: Tensor, z: Tensor, moves: list[Move], settings: Annealing, backwards: bool
) -> tuple[Tensor, Tensor]:
    """log w (B, M) and the mean acceptance (B,)."""
    target = Target(model, x.repeat_interleave(settings.chains, dim=0))
    moves = [move.repeated(settings.chains) for move in moves]
    ended = anneal(target, z, moves, settings.leapfrog_steps, backwards)
    return ended.log_weights.view(-1, settings.chains), ended.acceptance.view(-1, settings.chains).mean(1)


def _joined(parts: list[AnnealedEstimate]) -> AnnealedEstimate:
    names = ("log_likelihood", "effective_samples", "acceptance")
    return AnnealedEstimate(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
