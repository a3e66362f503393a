"""Hamiltonian Monte Carlo for many chains at once, in the latents of a model between its prior and its posterior.

A move from z under f_β(z) = p(z) p(x|z)^β draws a momentum p ~ N(0, M), follows Hamilton's equations by leapfrog steps
of length ε, and is accepted with probability min(1, exp(−change of energy)): f_β is invariant, whatever ε and the mass
matrix M are, so long as they do not depend on the chain. Source: Neal, "MCMC using Hamiltonian dynamics", 2011
(https://arxiv.org/abs/1206.1901).

All draws come from torch's global generators: wrap the calls in :func:`lightning_alws.noise.seeded`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_alws.generative import LatentVariableModel
from lightning_alws.held import held
from lightning_alws.precision import full_precision


@dataclass(frozen=True)
class State:
    """Points z (N, ...) of N chains, with both log densities (N,) and their gradients with respect to z (N, ...)."""

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    prior_slope: Tensor
    likelihood_slope: Tensor

    def log_density(self, beta: float) -> Tensor:
        """log p(z) + β log p(x|z), shape (N,)."""
        return self.log_prior + beta * self.log_likelihood

    def slope(self, beta: float) -> Tensor:
        """Its gradient, shape (N, ...)."""
        return self.prior_slope + beta * self.likelihood_slope

    def replaced(self, rows: Tensor, other: State) -> State:
        """The same with the rows that are True in ``rows`` (N,) taken from another state."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return State(*(torch.where(rows.view(-1, *[1] * (old.dim() - 1)), new, old) for old, new in pairs))


@dataclass(frozen=True)
class Move:
    """What a transition is tuned by.

    Attributes:
        step: ε, shape (N,).
        factor: R with R⁻¹R⁻ᵀ the mass matrix for D entries of z, which all rows share, (D, D).
    """

    step: Tensor
    factor: Tensor

    def repeated(self, times: int) -> Move:
        """The same for so many rows in a row for each one."""
        return Move(self.step.repeat_interleave(times), self.factor)


class Target:
    """log p(z_r) and log p(x_r|z_r) of the rows, with gradients in z.

    Args:
        model: its parameters should not require a gradient; see :func:`differentiable`.
        x: one observation for each chain, (N, *event).
    """

    def __init__(self, model: LatentVariableModel, x: Tensor) -> None:
        self.model, self.x = model, x

    def __call__(self, z: Tensor) -> State:
        z = z.detach().requires_grad_()
        values = [self.model.log_prior(z), self.model.likelihood(z).log_prob(self.x)]
        # A uniform prior does not depend on z.
        slopes = [torch.autograd.grad(v.sum(), z)[0] if v.requires_grad else torch.zeros_like(z) for v in values]
        return State(z.detach(), *(value.detach().double() for value in values), *slopes)


def leapfrog(
    target: Target, state: State, momentum: Tensor, beta: float, move: Move, steps: int
) -> tuple[State, Tensor]:
    """Hamiltonian dynamics in the potential −log f_β; volume preserving, and its own inverse if the momentum is turned.

    Args:
        momentum: R p, standard normal under the mass matrix, (N, D) for D entries of z.
        steps: their number.

    Returns:
        The state and the momentum at the end.
    """
    step = move.step[:, None].to(momentum)

    def kick(state: State) -> Tensor:
        return step * (state.slope(beta).flatten(1) @ move.factor.T)

    momentum = momentum + 0.5 * kick(state)
    for index in range(steps):
        state = target(state.z + (step * (momentum @ move.factor)).view_as(state.z))
        momentum = momentum + (1.0 if index < steps - 1 else 0.5) * kick(state)
    return state, momentum


def transition(target: Target, state: State, beta: float, move: Move, steps: int) -> tuple[State, Tensor]:
    """One move of Hamiltonian Monte Carlo, which leaves f_β invariant for every row.

    Returns:
        The new state, and the probabilities of acceptance (N,), float64, 0 where the trajectory left all numbers.
    """
    momentum = torch.randn_like(state.z.flatten(1))
    end, final = leapfrog(target, state, momentum, beta, move, steps)
    kinetic = 0.5 * (final.double().square() - momentum.double().square()).sum(1)
    log_ratio = end.log_density(beta) - state.log_density(beta) - kinetic
    acceptance = torch.where(log_ratio.isnan(), -math.inf, log_ratio).clamp_max(0).exp()
    return state.replaced(torch.rand_like(acceptance) < acceptance, end), acceptance


@contextmanager
def differentiable(model: nn.Module, device: torch.device) -> Iterator[None]:
    """A block in which log densities have gradients in z, and in z alone: the model's parameters are frozen meanwhile.

    Lightning tests in inference mode, whose tensors can take no part in a gradient: observations from outside are to be
    cloned inside of the block.
    """
    with torch.inference_mode(False), torch.enable_grad(), full_precision(device), held(model):
        yield
