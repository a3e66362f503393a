"""How well a learnt mixing matrix agrees with the true one, up to what no method can know: order, sign and scale.

Matched absolute cosine: the mean of |cos| between learnt and true columns, in the pairing with the largest sum
(Hungarian algorithm; Kuhn, "The Hungarian method for the assignment problem", 1955).

Amari distance, for P = learnt⁺ true (K, K): the mean over rows and columns of (Σ_j |P_ij| / max_j |P_ij| − 1)/(K − 1);
Amari, Cichocki, Yang, "A new learning algorithm for blind signal separation", NIPS 8, 1996.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lightning_alws.errors import UserError


@dataclass(frozen=True)
class Matching:
    """Which learnt column stands for which true one.

    Attributes:
        columns: for each true column the learnt one, int64 (K,); a permutation.
        cosines: their cosine, signed, (K,).
    """

    columns: Tensor
    cosines: Tensor

    @property
    def mean_absolute_cosine(self) -> float:
        """1 for perfect recovery; nan where the learnt columns are not finite."""
        return float(self.cosines.abs().mean())


def match_columns(learnt: Tensor, true: Tensor) -> Matching:
    """Pair the columns of two matrices (D, K) so that their absolute cosines have the largest sum, in float64.

    A column of zeros has cosine 0 with every other. Where ``learnt`` is not finite the cosines are nan.

    Raises:
        UserError: the shapes differ.
    """
    _check(learnt, true)
    if not learnt.isfinite().all():
        return Matching(torch.arange(learnt.shape[1]), torch.full((learnt.shape[1],), math.nan, dtype=torch.float64))
    learnt, true = (_unit_columns(matrix) for matrix in (learnt, true))
    cosines = true.T @ learnt
    rows, columns = (torch.from_numpy(indices) for indices in linear_sum_assignment(-cosines.abs().numpy()))
    return Matching(columns, cosines[rows, columns])


def amari_distance(learnt: Tensor, true: Tensor) -> float:
    """0 where the columns agree up to order, sign and scale, at most 1; matrices (D, K) with 2 ≤ K ≤ D, in float64.

    nan where ``learnt`` is not finite, or so degenerate that a row or column of learnt⁺ true vanishes.

    Raises:
        UserError: the shapes differ, or do not allow a pseudo-inverse on the left.
    """
    _check(learnt, true)
    count = learnt.shape[1]
    if not 2 <= count <= learnt.shape[0]:
        raise UserError(
            f"the Amari distance takes matrices of 2 to D columns for D rows, but got {tuple(learnt.shape)}; use the "
            "matched cosine."
        )
    if not learnt.isfinite().all():
        return math.nan
    product = (torch.linalg.pinv(_unit_columns(learnt)) @ _unit_columns(true)).abs()
    excess = [product.sum(d) / product.amax(d) - 1 for d in (0, 1)]
    return float(torch.cat(excess).mean() / (count - 1))


def _check(learnt: Tensor, true: Tensor) -> None:
    if learnt.ndim != 2 or learnt.shape != true.shape:
        raise UserError(
            f"learnt and true filters must be two matrices of one shape (D, K), but have {tuple(learnt.shape)} and "
            f"{tuple(true.shape)}; set the model's latent_dim to the number of sources."
        )


def _unit_columns(matrix: Tensor) -> Tensor:
    matrix = matrix.detach().cpu().double()
    return matrix / matrix.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
