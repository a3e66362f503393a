"""Kernel ridge regression in D features of finite number, k(x, x') ≈ ⟨φ(x), φ(x')⟩, at a cost linear in N.

    W = Φ (ΦᵀΦ + λI)⁻¹ φ(x*),   Φ = φ(x_n) (N, D),   which is (ΦΦᵀ + λI)⁻¹ Φ φ(x*)

The ridge is that of the exact regression, to which these are near as ΦΦᵀ is near K: time N D² + D³/3, memory N D.

* Random features (Rahimi, Recht, "Random features for large-scale kernel machines", 2007): √(2/D) (cos ω·g(x)/s,
  sin ω·g(x)/s), D/2 frequencies ω drawn from the kernel's spectrum. Unbiased for K, exact on its diagonal, with an
  error of order 1/√D whatever N is. Pairs, since cos(ω·g/s + b) of random phase, as in the released code, errs
  more for as many numbers (Sutherland, Schneider, "On the error of random Fourier features", 2015).
  Orthogonal ω (Yu et al., "Orthogonal random features", 2016) make that error smaller, more so where D is not much
  larger than g's dimension.
* Nyström (Williams, Seeger, "Using the Nyström method to speed up kernel machines", 2001): φ(x) = L⁻¹ k(c, x) with m
  of the samples for centres c and K_cc = LLᵀ, which is (K_nc K_cn + λ K_cc)⁻¹ in the primal form. Exact for m = N.

The released code of amortised learning has both, with a ridge on the wrong matrix (added to every entry of ΦᵀΦ; λI in
place of λ K_cc) and without √(2/D).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from lightning_alws.cholesky import Factor, safe_cholesky, solve, with_ridge
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.kernels import GaussianKernel, Kernel, RadialKernel, of_feature_distances
from lightning_alws.noise import generator, global_seed
from lightning_alws.precision import full_precision
from lightning_alws.regression import FittedRidge, KernelRidge, name_non_finite
from lightning_alws.scope import Scope

FeatureMap = Callable[[Tensor], Tensor]
CENTRE_JITTER = 1e-5  # of K_cc, relative to its diagonal: centres may lie close together


class FittedFeatureRidge(FittedRidge):
    """The regression on one set of sleep observations; made by :meth:`FeatureRidge.fit`."""

    def __init__(
        self,
        kernel: Kernel,
        mapped: Tensor,
        matrix: Tensor,
        factor: Factor,
        intercept: bool,
        ridge: Tensor,
        feature_map: FeatureMap,
        scope: Scope,
    ) -> None:
        super().__init__(kernel, mapped, matrix, factor, intercept)
        self._ridge, self._map, self._scope = ridge, feature_map, scope

    def weights(self, x: Tensor) -> Tensor:
        """W (N, B) for B observations x (B, *event); differentiable in the kernel's parameters if trained."""
        with full_precision(x.device):
            query = self._map(self.kernel.features(x))
            weights = self._features @ solve(self._matrix, query.T, self.factor)
            if not self._intercept:
                return weights
            # (K + λI)⁻¹ 1, by the matrix inversion lemma.
            sums = self._scope.sum(self._features.sum(0))[:, None]
            unit = (1 - self._features @ solve(self._matrix, sums, self.factor)) / self._ridge
            return weights + unit * ((1 - self._scope.sum(weights.sum(0))) / self._scope.sum(unit.sum()))


class FeatureRidge(KernelRidge):
    """What random features and Nyström share: a regression in φ(x), D numbers.

    Samples of several ranks are pooled by summing ΦᵀΦ over them, D² numbers, and the D of Σ_n φ(x_n) where there is an
    intercept; the samples themselves stay where they are, but for those that the kernel or φ looks at.

    Attributes:
        mapped_rows: how many of the samples :meth:`feature_map` looks at, from the first one on.
    """

    most_pooled = None
    mapped_rows: int = 0

    @abstractmethod
    def feature_map(self, features: Tensor) -> FeatureMap:
        """φ, from features (M, d) to (M, D), given the kernel features (N, d) of the sleep samples.

        Of several ranks' samples, features are those of the first ones alone, as many as are looked at.
        """

    def fit(self, x: Tensor, wake: Tensor | None = None) -> FittedRidge:
        """Factorise ΦᵀΦ + λI for sleep observations x (N, *event), N ≥ 2."""
        return self.fit_pooled(x, wake, Scope())

    def fit_pooled(self, x: Tensor, wake: Tensor | None, scope: Scope) -> FittedRidge:
        """Factorise ΦᵀΦ + λI, summed over all ranks; the weights are those of this rank's own samples.

        Args:
            x: this rank's sleep observations (N, *event).
            wake: of no effect.
            scope: the ranks.
        """
        with full_precision(x.device):
            features = self.kernel.features(x)
            first = self._first_features(x, features, scope)
            self.kernel.observe(first)
            feature_map = self.feature_map(first)
            mapped = feature_map(features)
            matrix = self._regularised_products(mapped, scope)
            factor = safe_cholesky(
                matrix.detach(),
                self.ridge.detach(),
                lambda: self._regularised_products(mapped.detach().double(), scope),
                # As long as all do the same, the sums in float64 are asked for by all ranks or by none.
                lambda valid: scope.agree(valid, x.device),
            )
        fitted = FittedFeatureRidge(self.kernel, mapped, matrix, factor, self.intercept, self.ridge, feature_map, scope)
        if not factor.valid:
            fitted.failure = name_non_finite(
                sleep_samples=x, kernel_parameters=self._parameters_flat(), kernel_features=features
            ) or (
                f"the products of {mapped.shape[1]} features of {len(x)} sleep samples are singular, even in float64, "
                f"with ridge {float(self.ridge):.1e}"
            )
        return fitted

    def _first_features(self, x: Tensor, features: Tensor, scope: Scope) -> Tensor:
        """Kernel features of as many of all ranks' samples as are looked at; of one rank's, all its own."""
        count = max(self.mapped_rows, self.kernel.observed_rows)
        if scope.ranks == 1 or not count:
            return features
        # Of the observations, not of their features: each rank then has the gradient of its own kernel's parameters.
        return self.kernel.features(scope.head(x, int(min(count, scope.ranks * len(x)))))

    def _regularised_products(self, mapped: Tensor, scope: Scope) -> Tensor:
        """ΦᵀΦ + λI from Φ (N, D) of each rank."""
        products = scope.sum(mapped.T @ mapped)
        return with_ridge(products, self.ridge)


class RandomFeatureRidge(FeatureRidge):
    """Kernel ridge regression in D random Fourier features of a kernel that depends on distances alone.

    Args:
        event_shape: shape of one observation.
        kernel: builds the kernel from the event shape: GaussianKernel, MedianKernel or MaternKernel.
        ridge: λ; not multiplied by N.
        intercept: as in :class:`~lightning_alws.regression.KernelRidge`.
        count: D, an even number.
        orthogonal: whether ω are orthogonal in blocks of as many as g has dimensions.
        redraw: whether ω is drawn anew in each training step, so that their error averages out over steps;
            otherwise they are drawn once.

    Raises:
        UserError: the ridge is not positive, D is odd or below 2, or the kernel has no spectrum to draw from.
    """

    sized_by = "count"
    frequencies: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        kernel: Callable[[tuple[int, ...]], Kernel] = GaussianKernel,
        ridge: float = 1e-2,
        intercept: bool = False,
        count: int = 1000,
        orthogonal: bool = True,
        redraw: bool = True,
    ) -> None:
        super().__init__(event_shape, kernel, ridge, intercept)
        check_at_least("model.learning.regression", count=(count, 2))
        if count % 2:
            raise UserError(f"model.learning.regression.count is {count}; features come in pairs: give an even number.")
        if not of_feature_distances(self.kernel):
            raise UserError(
                f"model.learning.regression is RandomFeatureRidge, but {type(self.kernel).__name__} does not depend on "
                "distances between features alone and has no spectrum; use GaussianKernel, MedianKernel, MaternKernel, "
                "or NystromRidge."
            )
        self.count, self.orthogonal, self.redraw = count, orthogonal, redraw
        self.register_buffer("frequencies", torch.empty(0))

    def initialise(self, x: Tensor) -> None:
        """Set the kernel's bandwidth from sleep observations x (N, *event), and draw the first ω."""
        super().initialise(x)
        with torch.no_grad():
            features = self.kernel.features(x[:1])
        self.frequencies = features.new_empty(features.shape[1], self.count // 2)
        self._draw(0)

    def at_step(self, step: int) -> None:
        """Draw ω of the step, the same on every process and in a resumed run: a function of its number alone."""
        super().at_step(step)
        if self.redraw:
            self._draw(step)

    def feature_map(self, features: Tensor) -> FeatureMap:
        """√(2/D) (cos ω·g/s, sin ω·g/s); of the samples' features only the number type counts."""
        scaled = self.frequencies.to(features) / self.kernel.bandwidth.to(features.dtype)

        def waves(g: Tensor) -> Tensor:
            angles = g @ scaled
            return (2 / self.count) ** 0.5 * torch.cat([angles.cos(), angles.sin()], dim=1)

        return waves

    def _draw(self, step: int) -> None:
        draws = generator(global_seed(), "frequencies", step)
        dimension, count = self.frequencies.shape
        normal = torch.randn(dimension, count, generator=draws, dtype=torch.float64)
        if self.orthogonal:
            normal = torch.cat([_orthogonal(block) for block in normal.split(dimension, dim=1)], dim=1)
        self.frequencies.copy_(normal * cast(RadialKernel, self.kernel).spectral_scale(count, draws))


def _orthogonal(normal: Tensor) -> Tensor:
    """Columns of a standard normal matrix (d, c ≤ d) made orthogonal, of uniform direction and each of its length."""
    directions, upper = torch.linalg.qr(normal)
    return directions * upper.diagonal().sign() * normal.norm(dim=0)


class NystromRidge(FeatureRidge):
    """Kernel ridge regression on the span of m of the N sleep samples, any kernel.

    Args:
        event_shape: shape of one observation.
        kernel: builds the kernel from the event shape.
        ridge: λ; not multiplied by N.
        intercept: as in :class:`~lightning_alws.regression.KernelRidge`.
        centres: m; the first m of the samples, which are independent draws, so that these are a random choice. All N
            where there are fewer.

    Raises:
        UserError: the ridge is not positive, or m below 1.
    """

    sized_by = "centres"

    def __init__(
        self,
        event_shape: tuple[int, ...],
        kernel: Callable[[tuple[int, ...]], Kernel] = GaussianKernel,
        ridge: float = 1e-2,
        intercept: bool = False,
        centres: int = 1000,
    ) -> None:
        super().__init__(event_shape, kernel, ridge, intercept)
        check_at_least("model.learning.regression", centres=(centres, 1))
        self.centres = self.mapped_rows = centres

    def feature_map(self, features: Tensor) -> FeatureMap:
        """L⁻¹ k(c, g), with the first m of the samples' features for centres c; NaN where K_cc has no factor L."""
        centres = features[: self.centres]
        gram = self.kernel.gram(centres)
        # At least what rounding does to the largest eigenvalue, up to m: wide kernels cannot be factorised with less.
        least = CENTRE_JITTER if gram.dtype == torch.float32 else CENTRE_JITTER**2
        jitter = max(least, len(gram) * torch.finfo(gram.dtype).eps)
        lower, info = torch.linalg.cholesky_ex(gram + jitter * torch.diag(gram.diagonal()))
        # A failure leaves NaN in place of a wrong factor: the products are then not finite, and the step is skipped.
        lower = torch.where(info == 0, lower, torch.nan)
        return lambda g: torch.linalg.solve_triangular(lower, self.kernel.cross(centres, g), upper=False).T
