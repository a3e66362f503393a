"""Langevin moves: the acceptance by its definition, detailed balance, and the stationary law against quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from models import distance_to_grid
from torch import Tensor
from torch.distributions import Normal

from lightning_alws.errors import UserError
from lightning_alws.langevin import Langevin


def gaussian(w: Tensor) -> Tensor:
    """−log N(0.7, 0.4²)."""
    return 0.5 * ((w - 0.7) / 0.4).square().flatten(1).sum(1)


def curved(w: Tensor) -> Tensor:
    """Skewed: a standard normal prior, e^w observed with noise."""
    return (0.5 * w.square() + 2 * (w.exp() - 1.5).square()).flatten(1).sum(1)


def mixture(w: Tensor) -> Tensor:
    """−log(0.3 N(−1.2, 0.5²) + 0.7 N(1, 0.4²)), two modes of unequal weight."""
    parts = [math.log(p) + Normal(m, s).log_prob(w) for p, m, s in ((0.3, -1.2, 0.5), (0.7, 1.0, 0.4))]
    return -torch.logaddexp(*parts).flatten(1).sum(1)


POTENTIALS = {"conjugate": gaussian, "non-linear": curved, "mixture": mixture}
STEPS = {"conjugate": 0.12, "non-linear": 0.12, "mixture": 0.3}


def evaluated(potential, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    leaf = w.clone().requires_grad_()
    energy = potential(leaf)
    return w, energy.detach(), torch.autograd.grad(energy.sum(), leaf)[0]


def log_proposal(langevin: Langevin, to: Tensor, start: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """log N(to; w − η ∇V(w), 2η I) by torch.distributions."""
    law = Normal(start[0] - langevin.step_size * start[2], (2 * langevin.step_size) ** 0.5)
    return law.log_prob(to).flatten(1).sum(1)


@pytest.mark.parametrize("name", POTENTIALS)
def test_acceptance_is_that_of_the_definition_and_in_detailed_balance(name: str) -> None:
    """π(w) q(w'|w) min{1, r(w → w')} = π(w') q(w|w') min{1, r(w' → w)}, for states of three entries."""
    langevin = Langevin(0.3)
    here, there = (evaluated(POTENTIALS[name], torch.randn(50, 3, 1, dtype=torch.float64)) for _ in range(2))
    forth, back = langevin.log_ratio(*here, *there), langevin.log_ratio(*there, *here)
    definition = here[1] - there[1] + log_proposal(langevin, here[0], there) - log_proposal(langevin, there[0], here)
    torch.testing.assert_close(forth, definition)
    flow = -here[1] + log_proposal(langevin, there[0], here) + forth.clamp_max(0)
    torch.testing.assert_close(flow, -there[1] + log_proposal(langevin, here[0], there) + back.clamp_max(0))
    assert (forth > 0).any()
    assert (forth < 0).any()


def test_proposals_are_accepted_as_often_as_the_definition_says() -> None:
    """From one point, ∫ q(w'|w) min{1, r} dw' by quadrature; where the chain then is, is that law and an atom at w."""
    langevin, count = Langevin(0.4), 100_000
    start = evaluated(mixture, torch.full((count, 1), 0.2, dtype=torch.float64))
    torch.manual_seed(0)
    moved = langevin.run(mixture, start[0], 1)
    line = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None]
    there = evaluated(mixture, line)
    here = tuple(part[:1].expand(len(line), *part.shape[1:]) for part in start)
    mass = log_proposal(langevin, line, here).exp() * langevin.log_ratio(*here, *there).clamp_max(0).exp() * 18 / 4000
    accepted = moved.accepted[0]
    assert abs(float(accepted.mean() - mass.sum())) < 4 * 0.5 / count**0.5
    assert torch.equal(accepted == 0, moved.positions[0, :, 0] == 0.2)
    mean = (mass * line[:, 0]).sum() / mass.sum()
    assert abs(float(moved.positions[0, accepted == 1].mean() - mean)) < 5 / count**0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", POTENTIALS)
def test_stationary_law_is_that_of_the_potential(name: str) -> None:
    """Many chains, after many moves from a narrow law, against a grid; untested proposals leave a visible error.

    From a narrow law: where ∇V grows faster than w, a chain far out proposes ever farther points and stays.
    """
    count = 10_000
    for metropolis in (True, False):
        torch.manual_seed(1)
        w = 0.3 * torch.randn(count, 1, dtype=torch.float64)
        moved = Langevin(STEPS[name], metropolis).run(POTENTIALS[name], w, 300)
        distance = distance_to_grid(moved.positions[-1, :, 0], lambda line: -POTENTIALS[name](line[:, None]))
        if metropolis:
            assert distance < 1.95 / count**0.5  # the Kolmogorov-Smirnov distance of one case in a thousand
            assert 0.3 < float(moved.accepted.mean()) < 0.99
        else:
            assert not distance < 2 * 1.95 / count**0.5


def test_chains_side_by_side_know_nothing_of_each_other() -> None:
    torch.manual_seed(2)
    start = torch.randn(4, 2, 3, dtype=torch.float64)
    alone = start.clone()
    alone[1:] = 5 * torch.randn(3, 2, 3, dtype=torch.float64)
    ends = []
    for w in (start, alone):
        torch.manual_seed(3)
        ends.append(Langevin(0.1).run(curved, w, 5).positions[:, 0])
    assert torch.equal(*ends)
    assert not ends[0].requires_grad


def test_a_proposal_without_a_density_is_refused() -> None:
    def half(w: Tensor) -> Tensor:
        return (w - w.log()).sum(1)  # NaN for negative w

    moved = Langevin(0.5).run(half, torch.full((500, 1), 0.3, dtype=torch.float64), 20)
    assert (moved.positions > 0).all()
    assert 0 < float(moved.accepted.mean()) < 1


def test_no_move_and_steps_that_make_no_sense() -> None:
    none = Langevin(0.1).run(gaussian, torch.zeros(3, 2), 0)
    assert none.positions.shape == (0, 3, 2)
    assert none.accepted.shape == (0, 3)
    for step in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match=r"model\.step_size"):
            Langevin(step)
