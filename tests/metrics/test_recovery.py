"""Recovery of mixing matrices: what must not matter does not, and everything against a search over all pairings."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.metrics.recovery import amari_distance, match_columns


def shuffled(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns in another order, with other signs and scales; also the order and the factors."""
    count = matrix.shape[1]
    order = torch.randperm(count)
    factors = (torch.rand(count) + 0.5) * torch.where(torch.rand(count) < 0.5, -1, 1)
    return matrix[:, order] * factors, order, factors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_order_sign_and_scale_do_not_matter(dtype: torch.dtype) -> None:
    true = torch.randn(12, 5, dtype=dtype)
    learnt, order, factors = shuffled(true)
    matching = match_columns(learnt, true)
    assert matching.mean_absolute_cosine == pytest.approx(1, abs=1e-6)
    assert torch.equal(order[matching.columns], torch.arange(5))
    assert torch.equal(matching.cosines.sign(), factors[matching.columns].sign().double())
    assert amari_distance(learnt, true) == pytest.approx(0, abs=1e-5)
    other = torch.randn(12, 5, dtype=dtype)
    for measure in (amari_distance, lambda a, b: match_columns(a, b).mean_absolute_cosine):
        assert measure(shuffled(other)[0], true) == pytest.approx(measure(other, true), rel=1e-4)


def test_matching_is_the_best_of_all_pairings() -> None:
    for _ in range(5):
        learnt, true = torch.randn(3, 5), torch.randn(3, 5)
        cosines = torch.nn.functional.cosine_similarity(true[:, :, None], learnt[:, None, :], dim=0).abs()
        best = max(float(cosines[range(5), list(order)].mean()) for order in itertools.permutations(range(5)))
        assert match_columns(learnt, true).mean_absolute_cosine == pytest.approx(best, rel=1e-5)


def test_amari_distance_of_permuted_scaled_identity_is_zero_and_of_equal_shares_is_one() -> None:
    identity = torch.eye(4, dtype=torch.float64)
    assert amari_distance(shuffled(identity)[0], identity) == pytest.approx(0, abs=1e-12)
    # An orthogonal matrix of entries ±1/2: every source is mixed equally from all.
    hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    assert amari_distance(hadamard, identity) == pytest.approx(1)


def test_amari_distance_is_its_definition() -> None:
    learnt, true = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    unit = [m / m.norm(dim=0) for m in (learnt, true)]
    p = (torch.linalg.inv(unit[0].T @ unit[0]) @ unit[0].T @ unit[1]).abs().tolist()
    total = 0.0
    for i in range(3):
        row, column = p[i], [p[j][i] for j in range(3)]
        total += sum(row) / max(row) - 1 + sum(column) / max(column) - 1
    assert amari_distance(learnt, true) == pytest.approx(total / (2 * 3 * 2), rel=1e-10)


def test_zero_columns_count_as_unmatched_and_diverged_ones_as_nan() -> None:
    true = torch.eye(4)
    learnt = true.clone()
    learnt[:, 0] = 0
    assert match_columns(learnt, true).mean_absolute_cosine == pytest.approx(0.75)
    learnt[0, 0] = math.nan
    assert math.isnan(match_columns(learnt, true).mean_absolute_cosine)
    assert math.isnan(amari_distance(learnt, true))


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match=r"\(4, 3\) and \(4, 2\); set the model's latent_dim"):
        match_columns(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(UserError, match="use the matched cosine"):
        amari_distance(torch.eye(2, 3), torch.eye(2, 3))
