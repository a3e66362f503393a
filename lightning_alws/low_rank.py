"""Kernel ridge regression whose Gram matrix is numerically of low rank, at a cost linear in N and not cubic.

    K ≈ F Fᵀ  (pivoted Cholesky, F (N, r)),   W = (K + λI)⁻¹ k(x_n, x*) ≈ F (FᵀF + λI)⁻¹ f(x*)

with f(x*) the row that x* would have in F. A smooth kernel on one or two dimensions has r of some tens whatever N is,
and these are the weights of the exact regression to within the tolerance. Source: Harbrecht, Peters, Schneider, "On the
low-rank approximation by the pivoted Cholesky decomposition", Applied Numerical Mathematics 62, 2012.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_alws.cholesky import Factor
from lightning_alws.errors import UserError
from lightning_alws.kernels import GaussianKernel, Kernel
from lightning_alws.precision import full_precision
from lightning_alws.regression import FittedRidge, KernelRidge, name_non_finite

CHECKED = 50  # samples whose k(x, x) is looked at


@torch.no_grad()
def pivoted_cholesky(kernel: Kernel, features: Tensor, tolerance: float, max_rank: int) -> tuple[Tensor, Tensor, float]:
    """F (N, r) with K ≈ F Fᵀ for features (N, d), of a kernel that is 1 on the diagonal.

    Returns:
        F; the row numbers (r,) of the pivots, in their order, whose rows of F are lower triangular; and the largest
        diagonal entry of K − F Fᵀ, which is at most ``tolerance`` unless ``max_rank`` came first. The whole matrix
        K − F Fᵀ is positive semi-definite, so that no entry is larger.
    """
    residual = features.new_ones(len(features))
    columns, pivots = features.new_empty(max_rank, len(features)), []
    largest = 1.0
    for rank in range(max_rank):
        value, pivot = residual.max(0)
        largest = float(value)
        if not largest > tolerance:
            break
        column = kernel.cross(features, features[pivot][None])[:, 0]
        column = (column - columns[:rank].T @ columns[:rank, pivot]) / value.sqrt()
        columns[rank] = column
        pivots.append(pivot)
        residual = (residual - column.square()).clamp_min(0)
    else:
        largest = float(residual.max())
    return columns[: len(pivots)].T, torch.stack(pivots) if pivots else residual.new_empty(0, dtype=torch.long), largest


class FittedLowRank(FittedRidge):
    """The regression on one set of sleep observations; made by :meth:`LowRankRidge.fit`.

    Attributes:
        rank: r.
    """

    def __init__(self, kernel: Kernel, pivots: Tensor, root: Tensor, lower: Tensor, ridge: Tensor, intercept: bool):
        rank = root.T @ root + ridge * torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
        factor, info = torch.linalg.cholesky_ex(rank)
        valid = bool((info == 0) & torch.isfinite(factor.diagonal()).all())
        super().__init__(kernel, pivots, root, Factor(factor, 0.0, valid), intercept)
        self.rank = root.shape[1]
        self._lower, self._ridge = lower, ridge

    @torch.no_grad()
    def weights(self, x: Tensor) -> Tensor:
        """W (N, B) for B observations x (B, *event), without gradient."""
        with full_precision(x.device):
            right = self.kernel.cross(self._features, self.kernel.features(x).double())
            rows = torch.linalg.solve_triangular(self._lower, right, upper=False)
            weights = self._matrix @ self.factor.solve(rows)
            if self._intercept:
                ones = torch.ones_like(weights[:, :1])
                unit = (ones - self._matrix @ self.factor.solve(self._matrix.T @ ones)) / self._ridge
                weights = weights + unit * ((1 - weights.sum(0)) / unit.sum())
        return weights.to(x.dtype)


class LowRankRidge(KernelRidge):
    """Kernel ridge regression for observations of one or two dimensions (or features of so few), for any N.

    Equal to :class:`KernelRidge` to within ``tolerance``: where the kernel has more than ``max_rank`` eigenvalues that
    count, the fit fails and says so. In float64 inside. Its kernel is fixed.

    Args:
        event_shape: shape of one observation.
        kernel: builds the kernel from the event shape; one that is 1 where observations coincide.
        ridge: λ; not multiplied by N.
        intercept: as in :class:`KernelRidge`.
        tolerance: the largest error of an entry of K.
        max_rank: the largest r.

    Raises:
        UserError: a number is not positive.
    """

    most_pooled = None
    sized_by = "max_rank"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        kernel: Callable[[tuple[int, ...]], Kernel] = GaussianKernel,
        ridge: float = 1e-2,
        intercept: bool = False,
        tolerance: float = 1e-10,
        max_rank: int = 500,
    ) -> None:
        super().__init__(event_shape, kernel, ridge, intercept)
        for name, value in (("tolerance", tolerance), ("max_rank", max_rank)):
            if not value > 0:
                raise UserError(f"model.learning.regression.{name} is {value}; give a positive number.")
        self.tolerance, self.max_rank = tolerance, max_rank

    def fit(self, x: Tensor, wake: Tensor | None = None) -> FittedRidge:
        """Factorise K + λI for sleep observations x (N, *event), N ≥ 2.

        Raises:
            UserError: the kernel or the ridge is trained, or the kernel is not 1 on the diagonal.
        """
        if any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError(
                "model.learning.regression is LowRankRidge, whose kernel is fixed, but model.learning.kernel_objective "
                "would train it; use KernelRidge, or leave the objective out."
            )
        with torch.no_grad(), full_precision(x.device):
            features = self.kernel.features(x)
            self.kernel.observe(features)
            features = features.double()
            # Of some from everywhere: k may be 1 by chance, as a polynomial's where g is 0.
            some = features[:: max(1, len(features) // CHECKED)]
            if not torch.allclose(self.kernel.gram(some).diagonal(), features.new_ones(len(some))):
                raise UserError(
                    f"model.learning.regression is LowRankRidge, but {type(self.kernel).__name__} is not 1 on the "
                    "diagonal; use GaussianKernel, MedianKernel, QuantileKernel or MaternKernel, or KernelRidge."
                )
            rank = min(self.max_rank, len(x))
            root, pivots, error = pivoted_cholesky(self.kernel, features, self.tolerance, rank)
            fitted = FittedLowRank(
                self.kernel, features[pivots], root, root[pivots], self.ridge.double(), self.intercept
            )
        if not fitted.factor.valid or not error <= self.tolerance:
            fitted.failure = name_non_finite(
                sleep_samples=x, kernel_parameters=self._parameters_flat(), kernel_features=features
            ) or (
                f"the Gram matrix of {len(x)} sleep samples is not of rank {rank} (an error of {error:.1e} is left); "
                "KernelRidge needs no low rank"
            )
        return fitted
