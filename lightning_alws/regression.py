"""Kernel ridge regression from sleep samples, behind two methods: ``fit(x_n)`` and ``weights(x*)``.

    W = (K + λI)⁻¹ k(x_n, x*),   K_ij = k(x_i, x_j),   prediction of any target y at x*:  Σ_n W_n* y_n

The weights do not depend on the targets, so one factorisation serves every target and every query. λ is not
multiplied by N. Source: Wenliang et al., ICML 2020, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_alws.cholesky import Factor, safe_cholesky, solve, with_ridge
from lightning_alws.errors import UserError
from lightning_alws.kernels import GaussianKernel, Kernel
from lightning_alws.precision import full_precision
from lightning_alws.scope import Scope


def name_non_finite(**tensors: Tensor) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, with how many, or None."""
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            return f"{name.replace('_', ' ')} hold {bad} non-finite of {tensor.numel()} values"
    return None


class FittedRidge:
    """The regression on one set of sleep observations; made by :meth:`KernelRidge.fit`.

    Attributes:
        factor: the Cholesky factor.
        failure: why the regression cannot be used, or None.
    """

    def __init__(
        self,
        kernel: Kernel,
        features: Tensor,
        matrix: Tensor,
        factor: Factor,
        intercept: bool,
        root_importance: Tensor | None = None,
    ) -> None:
        self.kernel = kernel
        self.factor = factor
        self.failure: str | None = None
        self._features = features
        self._matrix = matrix
        self._intercept = intercept
        self._root_importance = root_importance

    def weights(self, x: Tensor) -> Tensor:
        """W (N, B) for B observations x (B, *event); differentiable in the kernel's parameters if trained."""
        with full_precision(x.device):
            right = self.kernel.cross(self._features, self.kernel.features(x))
            if not self._intercept:
                return self._solve(right)
            ones = torch.ones_like(right[:, :1])
            solved = self._solve(torch.cat([right, ones], dim=1))
            weights, unit = solved[:, :-1], solved[:, -1:]
            return weights + unit * ((1 - weights.sum(0)) / unit.sum())

    def _solve(self, right: Tensor) -> Tensor:
        """(K + λ diag(1/w))⁻¹ right = R (RKR + λI)⁻¹ R right with R = diag(√w), where w may be 0."""
        if self._root_importance is None:
            return solve(self._matrix, right, self.factor)
        root = self._root_importance[:, None]
        return root * solve(self._matrix, root * right, self.factor)


class OwnRows(FittedRidge):
    """A regression on the samples of all ranks, with the weights of one rank's own.

    Args:
        fitted: the regression.
        rows: which of the samples are the rank's.
    """

    def __init__(self, fitted: FittedRidge, rows: slice) -> None:
        self.kernel, self.factor, self.failure = fitted.kernel, fitted.factor, fitted.failure
        self._fitted, self._rows = fitted, rows

    def weights(self, x: Tensor) -> Tensor:
        """W (N, B) of the rank's N samples for B observations x (B, *event)."""
        return self._fitted.weights(x)[self._rows]


class KernelRidge(nn.Module):
    """Exact kernel ridge regression: Gram matrix, one Cholesky factorisation; O(N³), right up to N of some thousands.

    Args:
        event_shape: shape of one observation.
        kernel: builds the kernel from the event shape.
        ridge: λ, kept as log λ; not multiplied by N.
        intercept: adds an unpenalised constant to the regression, as a kernel k + c with c → ∞ would. The weights of
            every query then sum to one, and a query far from all sleep samples is predicted at their mean, not at 0.

    Raises:
        UserError: the ridge is not positive.

    Attributes:
        most_pooled: samples of all ranks together that it can be fitted on; None for any number.
        sized_by: the argument that its memory grows with beside N; empty where there is none.
    """

    most_pooled: int | None = 20_000
    sized_by: str = ""

    def __init__(
        self,
        event_shape: tuple[int, ...],
        kernel: Callable[[tuple[int, ...]], Kernel] = GaussianKernel,
        ridge: float = 1e-2,
        intercept: bool = False,
    ) -> None:
        super().__init__()
        if not ridge > 0:
            raise UserError(f"model.learning.regression.ridge is {ridge}; give a positive number, such as 0.01.")
        self.kernel = kernel(event_shape)
        self.log_ridge = nn.Parameter(torch.tensor(float(ridge)).log())
        self.intercept = intercept

    @property
    def ridge(self) -> Tensor:
        """λ, a scalar."""
        return self.log_ridge.exp()

    def at_step(self, step: int) -> None:
        """Called before each training step with the number of steps done; here of no effect."""

    def initialise(self, x: Tensor) -> None:
        """Set the kernel's bandwidth from sleep observations x (N, *event) of the initial model."""
        self.kernel.initialise(x)

    def importance(self, features: Tensor, wake: Tensor | None) -> Tensor | None:
        """w (N,) ≥ 0 by which to weight the samples' squared errors, from sleep features (N, d); here None: all alike.

        Args:
            features: of the sleep samples.
            wake: observations (B, *event) that the regression is for, where known.
        """
        return None

    def fit(self, x: Tensor, wake: Tensor | None = None) -> FittedRidge:
        """Factorise K + λI, or with importance weights w what K + λ diag(1/w) comes to.

        Args:
            x: sleep observations (N, *event), N ≥ 2.
            wake: observations (B, *event) that the regression is for; only :meth:`importance` looks at them.
        """
        with full_precision(x.device):
            features = self.kernel.features(x)
            self.kernel.observe(features)
            importance = self.importance(features, wake)
            root = None if importance is None else importance.sqrt()
            matrix = self._regularised(features, root)
            factor = safe_cholesky(
                matrix.detach(), self.ridge.detach(), lambda: self._regularised(features.double(), root)
            )
        fitted = FittedRidge(self.kernel, features, matrix, factor, self.intercept, root)
        if not factor.valid:
            fitted.failure = name_non_finite(
                sleep_samples=x,
                kernel_parameters=self._parameters_flat(),
                kernel_features=features,
                **({} if importance is None else {"importance_weights": importance}),
            ) or (
                f"the Gram matrix of {len(x)} sleep samples is singular, even in float64, "
                f"with ridge {float(self.ridge):.1e}"
            )
        return fitted

    def fit_pooled(self, x: Tensor, wake: Tensor | None, scope: Scope) -> FittedRidge:
        """Factorise K + λI of the samples of all ranks; the weights are those of this rank's own.

        Args:
            x: this rank's sleep observations (N, *event).
            wake: observations (B, *event) of all ranks that the regression is for.
            scope: the ranks; each holds and factorises the matrix of all R·N samples.
        """
        if scope.ranks == 1:
            return self.fit(x, wake)
        own = slice(scope.rank * len(x), (scope.rank + 1) * len(x))
        return OwnRows(self.fit(scope.gather(x), wake), own)

    def check_pooled(self, samples: int, ranks: int) -> None:
        """Raise a UserError if there are too many samples on a number of ranks to pool them."""
        if self.most_pooled is not None and samples * ranks > self.most_pooled:
            raise UserError(
                f"model.learning.regression_scope is 'global', and {ranks} processes with model.learning.sleep_samples "
                f"{samples} pool {samples * ranks} of them, but {type(self).__name__}, whose matrix of all of them "
                f"each process holds and factorises, takes {self.most_pooled}; use RandomFeatureRidge, which sums over "
                f"the processes what does not grow with the samples, or set sleep_samples to at most "
                f"{self.most_pooled // ranks}, or regression_scope to 'rank'."
            )

    def _regularised(self, features: Tensor, root_importance: Tensor | None = None) -> Tensor:
        """K + λI from features (N, d); with √w (N,), RKR + λI where R = diag(√w)."""
        gram = self.kernel.gram(features)
        if root_importance is not None:
            root = root_importance.to(gram.dtype)
            gram = root[:, None] * gram * root
        return with_ridge(gram, self.ridge)

    def _parameters_flat(self) -> Tensor:
        tensors = [*self.parameters(), *self.buffers()]
        return torch.cat([tensor.detach().flatten() for tensor in tensors])


class AnnealedRidge(KernelRidge):
    """Ridge regression whose λ falls geometrically during training, from ``start`` to ``ridge`` in ``steps`` steps.

    The model begins by making noise, far from every real image, where a small ridge extrapolates: weights of either
    sign whose negative part pushes latents away from the data for good. A large ridge averages instead; it may fall
    as the samples come to resemble the data.

    Args:
        event_shape: shape of one observation.
        kernel: builds the kernel from the event shape.
        ridge: λ at the end, trained where the kernel is.
        intercept: as in :class:`KernelRidge`.
        start: λ in the first step.
        steps: after which λ is ``ridge``.

    Raises:
        UserError: a number is not positive.
    """

    factor: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        kernel: Callable[[tuple[int, ...]], Kernel] = GaussianKernel,
        ridge: float = 1e-1,
        intercept: bool = False,
        start: float = 10.0,
        steps: int = 3000,
    ) -> None:
        super().__init__(event_shape, kernel, ridge, intercept)
        for name, value in (("start", start), ("steps", steps)):
            if not value > 0:
                raise UserError(f"model.learning.regression.{name} is {value}; give a positive number.")
        self.log_ratio, self.steps = math.log(start / ridge), steps
        self.register_buffer("factor", torch.tensor(start / ridge))

    def at_step(self, step: int) -> None:
        """Set λ for the step; a function of its number alone, so that a resumed run goes on as it was."""
        self.factor.fill_(math.exp(self.log_ratio * max(0.0, 1 - step / self.steps)))

    @property
    def ridge(self) -> Tensor:
        return self.log_ridge.exp() * self.factor


def freeze(module: nn.Module) -> None:
    """Turn every parameter of a module into a buffer of the same name: it is saved and moved, but never trained."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
