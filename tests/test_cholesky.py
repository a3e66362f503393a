"""The factorisation's failures, and what is differentiable beside it; the adjoint is tested with the regression."""

from __future__ import annotations

import pytest
import torch

from lightning_alws.cholesky import safe_cholesky, with_ridge


def test_duplicated_samples_raise_the_ridge_with_a_warning() -> None:
    matrix = torch.ones(200, 200) + 1e-9 * torch.eye(200)
    with pytest.warns(UserWarning, match="ridge was raised"):
        factor = safe_cholesky(matrix, 1e-5, matrix.double)
    assert factor.valid
    assert factor.jitter > 0


def test_an_indefinite_matrix_is_reported_not_returned() -> None:
    matrix = torch.diag(torch.tensor([1.0, -1.0]))
    assert not safe_cholesky(matrix, 1e-3, matrix.double).valid


def test_a_ridge_is_added_to_the_diagonal_and_learns_from_it() -> None:
    matrix, ridge = torch.randn(5, 5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    expected, given = matrix + 0.3 * torch.eye(5), matrix.clone()
    torch.testing.assert_close(with_ridge(given.requires_grad_(), ridge), expected)
    assert torch.equal(given, matrix), "a matrix with a gradient is left as it is"
    assert torch.autograd.gradcheck(with_ridge, (given, ridge.clone().requires_grad_()))
    torch.testing.assert_close(with_ridge(matrix, ridge), expected)
