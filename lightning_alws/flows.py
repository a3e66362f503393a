"""Flows z → z′ of latents that are invertible by construction, with their log-determinants: planar and Sylvester.

    planar      z′ = z + û tanh(wᵀz + b)            det = 1 + tanh′(wᵀz + b) wᵀû
    Sylvester   z′ = z + Q R₁ tanh(R₂ Qᵀz + b)      det = Π_i 1 + tanh′(R₂ Qᵀz + b)_i (R₁)_ii (R₂)_ii

with wᵀû > −1, orthonormal columns in Q, triangular R₁ and R₂, and |(R₁)_ii (R₂)_ii| < 1. Sources: Rezende, Mohamed,
"Variational inference with normalizing flows", ICML 2015 (https://arxiv.org/abs/1505.05770); van den Berg, Hasenclever,
Tomczak, Welling, "Sylvester normalizing flows for variational inference", UAI 2018 (https://arxiv.org/abs/1803.05649).

zuko, which the priors take their flows from, has neither of the two; Pyro has both, the Sylvester flow with parameters
that no encoder can give. A few lines each: they are written here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from lightning_alws.errors import UserError, check_at_least

BJORCK_STEPS = 40  # enough where a matrix's least singular value is a millionth of the largest
LARGEST_DIAGONAL = 0.999  # of R₁ and R₂: in float32 tanh reaches 1, and with it the determinant 0
ZERO_SHIFT = math.log(math.e - 1)  # softplus of it is 1


class Flow(Protocol):
    """A map of S latents for each of B observations."""

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z′ and log |det ∂z′/∂z| for z (S, B, D): shapes (S, B, D) and (S, B)."""
        ...


def through(flows: Sequence[Flow], z: Tensor) -> tuple[Tensor, Tensor]:
    """z through one flow after the other, and the sum of the log-determinants, for z (S, B, D)."""
    total = z.new_zeros(z.shape[:-1])
    for flow in flows:
        z, log_det = flow(z)
        total = total + log_det
    return z, total


@dataclass(frozen=True)
class PlanarFlow:
    """z′ = z + û tanh(wᵀz + b), where û is u moved along w until wᵀû > −1.

    û = u + (m(wᵀu) − wᵀu) w/‖w‖² with m(a) = softplus(a + log(e − 1)) − 1. The source has softplus(a) there, which is
    not 0 at a = 0: u = 0 is then no identity, and û grows as 1/‖w‖ where w is small.

    Attributes:
        u: (D,), the same for every observation, or (B, D).
        w: of the same shape.
        b: () or (B,).
    """

    u: Tensor
    w: Tensor
    b: Tensor

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        inner = (self.w * self.u).sum(-1)
        least_one = softplus(inner + ZERO_SHIFT)  # 1 + wᵀû
        along = self.w / self.w.square().sum(-1, keepdim=True).clamp_min(1e-12)
        u = self.u + (least_one - 1 - inner)[..., None] * along
        hidden = ((self.w * z).sum(-1) + self.b).tanh()
        # 1 + (1 − h²)(wᵀû) as a sum of positive terms.
        det = hidden.square() + (1 - hidden.square()) * least_one
        return z + u * hidden[..., None], det.log()


@dataclass(frozen=True)
class SylvesterFlow:
    """z′ = z + Q R₁ tanh(R₂ Qᵀz + b), for B observations.

    Attributes:
        q: (B, D, M), QᵀQ = I.
        r1: (B, M, M), upper triangular, as r2, the products of their diagonals less than 1 in size.
        r2: (B, M, M).
        b: (B, M).
    """

    q: Tensor
    r1: Tensor
    r2: Tensor
    b: Tensor

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # Matrices of observation b to its S latents as rows, (B, S, ·): batched products instead of broadcast ones.
        rows = z.transpose(0, 1)
        hidden = (rows @ self.q @ self.r2.mT + self.b[:, None]).tanh()
        moved = rows + hidden @ self.r1.mT @ self.q.mT
        product = (self.r1.diagonal(dim1=-2, dim2=-1) * self.r2.diagonal(dim1=-2, dim2=-1))[:, None]
        log_det = ((1 - hidden.square()) * product).log1p().sum(-1)
        return moved.transpose(0, 1), log_det.transpose(0, 1)


def orthonormal(matrix: Tensor) -> Tensor:
    """The matrix with orthonormal columns nearest to each of (…, D, M), M ≤ D, by Björck's iteration.

    Q ← Q (I + ½ (I − QᵀQ)) from the matrix scaled to Frobenius norm 1, a fixed number of times: a stopping rule
    would wait for the device at each.
    """
    q = matrix / matrix.flatten(-2).norm(dim=-1).clamp_min(1e-12)[..., None, None]
    for _ in range(BJORCK_STEPS):
        q = 1.5 * q - 0.5 * q @ (q.mT @ q)
    return q


def reflected(vectors: Tensor) -> Tensor:
    """The product of Householder reflections I − 2vvᵀ/‖v‖² for vectors (…, H, D), shape (…, D, D)."""
    units = normalize(vectors, dim=-1)
    q = torch.eye(vectors.shape[-1], dtype=vectors.dtype, device=vectors.device)
    for v in units.unbind(-2):
        q = q - 2 * (q @ v[..., None]) * v[..., None, :]
    return q


class AmortisedFlows(Protocol):
    """Flows whose parameters an encoder gives.

    Attributes:
        size: how many numbers each flow takes.
    """

    size: int

    def __call__(self, parameters: Tensor) -> list[Flow]:
        """The flows for parameters (B, flows, size), unbounded."""
        ...


class AmortisedPlanar:
    """Planar flows of ``dim`` latents."""

    def __init__(self, dim: int) -> None:
        self.dim, self.size = dim, 2 * dim + 1

    def __call__(self, parameters: Tensor) -> list[Flow]:
        return [PlanarFlow(flow[:, : self.dim], flow[:, self.dim : -1], flow[:, -1]) for flow in parameters.unbind(1)]


class AmortisedSylvester:
    """Sylvester flows of ``dim`` latents.

    One full matrix gives the upper triangle of R₁ and, transposed, that of R₂, as published.

    Args:
        dim: D.
        kind: of Q: "orthogonal", M columns by Björck's iteration; "householder", D by reflections; "triangular", the
            identity in even flows and the reversal of z in odd ones, without parameters.
        columns: M where orthogonal, of which D are the most.
        reflections: how many where Householder.
    """

    def __init__(self, dim: int, kind: str, columns: int = 8, reflections: int = 8) -> None:
        self.dim, self.kind, self.reflections = dim, kind, reflections
        self.columns = min(columns, dim) if kind == "orthogonal" else dim
        of_q = {"orthogonal": dim * self.columns, "householder": dim * reflections, "triangular": 0}[kind]
        self.sizes = [self.columns**2, self.columns, self.columns, of_q]
        self.size = sum(self.sizes)

    def __call__(self, parameters: Tensor) -> list[Flow]:
        full, diagonal, b, of_q = parameters.split(self.sizes, dim=-1)
        full = full.unflatten(-1, (self.columns, self.columns))
        r1 = _upper(full, full.diagonal(dim1=-2, dim2=-1))
        r2 = _upper(full.mT, diagonal)
        parts = zip(self._q(of_q), r1.unbind(1), r2.unbind(1), b.unbind(1), strict=True)
        return [SylvesterFlow(*part) for part in parts]

    def _q(self, parameters: Tensor) -> list[Tensor]:
        """Q of each flow, (B, D, M), from parameters (B, flows, ·)."""
        if self.kind == "orthogonal":
            return [*orthonormal(parameters.unflatten(-1, (self.dim, self.columns))).unbind(1)]
        if self.kind == "householder":
            return [*reflected(parameters.unflatten(-1, (self.reflections, self.dim))).unbind(1)]
        batch, count, _ = parameters.shape
        eye = torch.eye(self.dim, dtype=parameters.dtype, device=parameters.device)
        return [(eye.flip(0) if odd else eye).expand(batch, -1, -1) for odd in (i % 2 for i in range(count))]


def _upper(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """The strict upper triangle of a matrix and another diagonal, squashed into (−1, 1)."""
    return matrix.triu(1) + (LARGEST_DIAGONAL * diagonal.tanh()).diag_embed()


def amortised_flows(kind: str, dim: int, columns: int, reflections: int) -> AmortisedFlows:
    """The flows of a kind for ``dim`` latents; a UserError for an unknown kind or sizes below 1."""
    check_at_least("model", columns=(columns, 1), reflections=(reflections, 1))
    if kind == "planar":
        return AmortisedPlanar(dim)
    if kind in ("orthogonal", "householder", "triangular"):
        return AmortisedSylvester(dim, kind, columns, reflections)
    raise UserError(f"model.flow is '{kind}'; it must be one of orthogonal, householder, triangular, planar.")
