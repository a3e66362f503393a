"""Langevin dynamics with a Metropolis-Hastings test, for any number of chains side by side.

One move of size η in the potential V, whose stationary law with the test is exp(−V) exactly:

    proposal   w' = w − η ∇V(w) + √(2η) ε,  ε ~ N(0, I),  so that q(w'|w) = N(w − η ∇V(w), 2η I)
    test       w' is accepted with probability min{1, e^{V(w) − V(w')} q(w|w') / q(w'|w)}

Sources: Roberts and Tweedie, "Exponential convergence of Langevin distributions and their discrete approximations",
Bernoulli 2, 1996; Roberts and Stramer, "Langevin diffusions and Metropolis-Hastings algorithms", Methodology and
Computing in Applied Probability 4, 2002. Written here rather than taken from a library (Pyro, BlackJAX): those keep a
sampler's state and adaptation to themselves, on the host, and know nothing of potentials spread over processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_alws.errors import UserError

Potential = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Trajectory:
    """Where C chains went.

    Attributes:
        positions: after each of T moves, (T, C, *shape); the position before where a proposal was refused.
        accepted: 1 where a proposal was accepted, otherwise 0, (T, C); all 1 without the test.
    """

    positions: Tensor
    accepted: Tensor


@dataclass(frozen=True)
class Langevin:
    """How a chain moves.

    Args:
        step_size: η, against the whole potential (not its mean over data); a scalar tensor where it is adapted.
        metropolis: whether proposals are tested. Without, the stationary law is off by an error of order η.

    Raises:
        UserError: η is not positive.
    """

    step_size: float | Tensor
    metropolis: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.step_size, Tensor) and not 0 < self.step_size < float("inf"):
            raise UserError(f"model.step_size is {self.step_size}; give a positive number, such as 0.001.")

    def run(
        self, potential: Potential, position: Tensor, moves: int, total: Callable[[Tensor], Tensor] = lambda part: part
    ) -> Trajectory:
        """T moves of each chain; noise comes from torch's global generators, gradients reach ``position`` alone.

        Args:
            potential: V of positions (C, *shape), shape (C,); chain c's depends on its own position only.
            position: where the chains begin, (C, *shape).
            moves: T.
            total: sums values and gradients of V over processes that each know a part of it; those processes must
                draw the same noise, and then decide and move alike.
        """
        position = position.detach()
        energy, gradient = self._evaluate(potential, position, total) if self.metropolis and moves else (None, None)
        positions, decisions = [], []
        for _ in range(moves):
            if energy is None or gradient is None:
                _, gradient = self._evaluate(potential, position, total)
            noise = torch.randn_like(position)
            proposal = position - self.step_size * gradient + (2 * self.step_size) ** 0.5 * noise
            accepted = position.new_ones(len(position))
            if self.metropolis and energy is not None:
                new_energy, new_gradient = self._evaluate(potential, proposal, total)
                log_ratio = self.log_ratio(position, energy, gradient, proposal, new_energy, new_gradient)
                # A NaN, from a proposal where V is none, compares as false: it is refused.
                decision = torch.rand_like(energy).log() < log_ratio
                accepted = decision.to(position.dtype)
                energy = torch.where(decision, new_energy, energy)
                rows = decision.view(-1, *[1] * (position.ndim - 1))
                position, gradient = (
                    torch.where(rows, new, old) for new, old in ((proposal, position), (new_gradient, gradient))
                )
            else:
                position, gradient = proposal, None
            positions.append(position)
            decisions.append(accepted)
        if not positions:
            return Trajectory(position.new_zeros(0, *position.shape), position.new_zeros(0, len(position)))
        return Trajectory(torch.stack(positions), torch.stack(decisions))

    def log_ratio(
        self,
        old: Tensor,
        old_energy: Tensor,
        old_gradient: Tensor,
        new: Tensor,
        new_energy: Tensor,
        new_gradient: Tensor,
    ) -> Tensor:
        """log of e^{V(w) − V(w')} q(w|w') / q(w'|w) for moves from w to w', shape (C,).

        Args:
            old: w, (C, *shape).
            old_energy: V(w), (C,).
            old_gradient: ∇V(w), (C, *shape).
            new: w', and so on.
        """
        forward = self.log_proposal(new, old, old_gradient)
        backward = self.log_proposal(old, new, new_gradient)
        return old_energy - new_energy + backward - forward

    def log_proposal(self, to: Tensor, start: Tensor, gradient: Tensor) -> Tensor:
        """log q(to|start) up to a constant, for ∇V at ``start``, shape (C,)."""
        residual = to - start + self.step_size * gradient
        return -residual.flatten(1).square().sum(1) / (4 * self.step_size)

    @staticmethod
    def _evaluate(potential: Potential, position: Tensor, total: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """V (C,) and ∇V (C, *shape) at a position."""
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            energy = potential(leaf)
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return total(energy.detach()), total(gradient)
