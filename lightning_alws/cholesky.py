"""Positive definite systems of a regression: a factorisation that says when it fails, and differentiable solutions.

X = A⁻¹B:   gB = A⁻¹gX,   gA = −gB Xᵀ,   by the one Cholesky factor of A that is there
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lightning_alws.precision import full_precision

RIDGE_RAISES = 3


@dataclass(frozen=True)
class Factor:
    """A Cholesky factor L of K + (λ + jitter) I.

    Attributes:
        lower: L (N, N), in float64 where float32 did not suffice; meaningless if ``valid`` is False.
        jitter: what was added to the ridge to make the matrix factorise (0 as a rule).
        valid: whether any attempt succeeded.
    """

    lower: Tensor
    jitter: float
    valid: bool

    def solve(self, right: Tensor) -> Tensor:
        """(K + (λ + jitter) I)⁻¹ right, in the dtype of ``right``."""
        return torch.cholesky_solve(right.to(self.lower.dtype), self.lower).to(right.dtype)


@torch.no_grad()
def safe_cholesky(
    matrix: Tensor,
    ridge: float | Tensor,
    in_float64: Callable[[], Tensor],
    agreed: Callable[[bool], bool] = bool,
) -> Factor:
    """Factorise matrix = K + λI; on failure with λ raised tenfold, up to three times, then in float64.

    ``cholesky_ex`` returns a finite, wrong factor on failure, so that ``info`` must be read (one host read where the
    first attempt succeeds). The diagonal of L is read along with it: a NaN in the matrix need not raise ``info``.

    Args:
        matrix: K + λI, (N, N).
        ridge: the λ that it holds.
        in_float64: makes the matrix anew in float64; a mere cast would keep float32's rounding of its entries.
        agreed: whether an attempt succeeded on all ranks, where they must try the same; given whether it did here.
    """

    def attempt(candidate: Tensor) -> tuple[Tensor, bool]:
        lower, info = torch.linalg.cholesky_ex(candidate)
        return lower, agreed(bool((info == 0) & torch.isfinite(lower.diagonal()).all()))

    lower, valid = attempt(matrix)
    if valid:
        return Factor(lower, 0.0, True)
    if not torch.isfinite(matrix).all():
        return Factor(lower, 0.0, False)
    ridge = float(ridge)
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for power in range(1, RIDGE_RAISES + 1):
        jitter = ridge * (10.0**power - 1)
        lower, valid = attempt(matrix + jitter * eye)
        if valid:
            warnings.warn(
                f"the Gram matrix of {len(matrix)} sleep samples is singular to working precision; the ridge was "
                f"raised from {ridge:.1e} to {ridge + jitter:.1e} for this step.",
                stacklevel=2,
            )
            return Factor(lower, jitter, True)
    lower, valid = attempt(in_float64())
    return Factor(lower, 0.0, valid)


class _Solve(torch.autograd.Function):
    """B ↦ A⁻¹B with the implicit adjoint: gB = A⁻¹g, gA = −gB Xᵀ, using the factor that is there.

    Differentiating through the factorisation gives the same gradient at 4-6 times the cost.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, right: Tensor, factor: Factor) -> Tensor:
        """A⁻¹B by the factor of A that is there; ``matrix`` is A itself, for its gradient's sake."""
        solution = factor.solve(right)
        ctx.factor = factor
        ctx.save_for_backward(solution)
        return solution

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (solution,) = ctx.saved_tensors
        with full_precision(solution.device):
            right_grad = ctx.factor.solve(grads[0])
            return -right_grad @ solution.T, right_grad, None


def solve(matrix: Tensor, right: Tensor, factor: Factor) -> Tensor:
    """A⁻¹ right by the factor of A that is there, differentiable in the matrix A and in ``right``."""
    return _Solve.apply(matrix, right, factor)


class _WithRidge(torch.autograd.Function):
    """K ↦ K + λI with the gradient of λ by the diagonal alone: an identity matrix would be passed over five times."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, ridge: Tensor) -> Tensor:
        """K + λI."""
        regularised = matrix.clone()
        regularised.diagonal().add_(ridge.to(matrix.dtype))
        ctx.dtype = ridge.dtype
        return regularised

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of K and λ."""
        return grads[0], grads[0].diagonal().sum().to(ctx.dtype)


def with_ridge(matrix: Tensor, ridge: Tensor) -> Tensor:
    """K + λI, differentiable in K (N, N) and λ; written to K itself where no gradient is asked for."""
    if torch.is_grad_enabled() and (matrix.requires_grad or ridge.requires_grad):
        return cast(Tensor, _WithRidge.apply(matrix, ridge))
    matrix.diagonal().add_(ridge.to(matrix.dtype))
    return matrix
