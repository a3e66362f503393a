"""Matrices exp(−‖a_i − b_j‖²/2) and their gradients, in as few passes over N × M numbers as there can be."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_alws.precision import full_precision


def gaussian_gram(a: Tensor) -> Tensor:
    """K_ij = exp(−‖a_i − a_j‖²/2) for centred a (N, d), shape (N, N), exactly 1 on the diagonal."""
    return cast(Tensor, _GaussianGram.apply(a))


def gaussian_cross(a: Tensor, b: Tensor) -> Tensor:
    """k_ij = exp(−‖a_i − b_j‖²/2) for centred a (N, d) and b (M, d), shape (N, M)."""
    return cast(Tensor, _GaussianCross.apply(a, b))


def _gaussian(a: Tensor, b: Tensor) -> Tensor:
    """exp(−‖a_i − b_j‖²/2) for centred a (N, d) and b (M, d), shape (N, M), at most 1.

    The norms are two more columns of the factors, and all else is done in place: on a CPU, a pass over fresh memory of
    N × M numbers takes longer than the exponentials.
    """
    norms_a, norms_b = (-0.5 * x.square().sum(1, keepdim=True) for x in (a, b))
    left = torch.cat([a, norms_a, torch.ones_like(norms_a)], dim=1)
    right = torch.cat([b, torch.ones_like(norms_b), norms_b], dim=1)
    return (left @ right.T).clamp_max_(0).exp_()


def _with_ones(a: Tensor) -> Tensor:
    """(a, 1), of d + 1 columns: what a matrix gives with it are its products with a, and its row sums."""
    return torch.cat([a, torch.ones_like(a[:, :1])], dim=1)


class _GaussianGram(torch.autograd.Function):
    """K_ij = exp(−‖a_i − a_j‖²/2), exactly 1 on the diagonal, by the two products that its gradient takes, G = gK:

    ∂L/∂a = (G + Gᵀ) a − rowsum(G + Gᵀ) a, where the diagonal counts for nothing.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        """K (N, N) from centred a (N, d)."""
        gram = _gaussian(a, a)
        gram.diagonal().fill_(1)
        ctx.save_for_backward(a, gram)
        return gram

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient of a (N, d)."""
        a, gram = ctx.saved_tensors
        with full_precision(a.device):
            both = grads[0] * gram
            both.diagonal().zero_()
            sums = both @ _with_ones(a) + both.T @ _with_ones(a)
        return sums[:, :-1] - sums[:, -1:] * a


class _GaussianCross(torch.autograd.Function):
    """k_ij = exp(−‖a_i − b_j‖²/2), with G = gk: ∂L/∂a = Gb − rowsum(G) a, ∂L/∂b = Gᵀa − rowsum(Gᵀ) b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        """k (N, M) from centred a (N, d) and b (M, d)."""
        cross = _gaussian(a, b)
        ctx.save_for_backward(a, b, cross)
        return cross

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of a (N, d) and b (M, d)."""
        a, b, cross = ctx.saved_tensors
        result: list[Tensor | None] = []
        with full_precision(a.device):
            product = grads[0] * cross
            for needed, own, other, matrix in zip(
                ctx.needs_input_grad, (a, b), (b, a), (product, product.T), strict=True
            ):
                sums = matrix @ _with_ones(other) if needed else None
                result.append(None if sums is None else sums[:, :-1] - sums[:, -1:] * own)
        return result[0], result[1]
