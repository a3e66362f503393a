"""Kernels on observations that are sets, x = {x_1 … x_n}: blind to the order of the elements.

    SetMeanKernel       k(X, Y) = exp(−‖mean g(x_a) − mean g(y_b)‖² / (2 θ²))
    SetGaussianKernel   k(X, Y) = exp(−MMD²(X, Y) / (2 θ²))
    MMD²(X, Y) = mean_ab κ(x_a, x_b) + mean_ab κ(y_a, y_b) − 2 mean_ab κ(x_a, y_b),  κ Gaussian of bandwidth s

Every observation in a batch has the same number of elements; queries may have another. Source: the published code
(kevin-w-li/al-ws, ``SetKernel`` and ``SetGaussianKernel``), where the self terms are multiplied by mistake; Gaussian
kernels of an MMD are positive definite: Christmann and Steinwart, "Universal kernels on non-standard input spaces",
NIPS 2010.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_alws.errors import UserError
from lightning_alws.kernels import (
    EVERY_STEP_ROWS,
    FeatureNetwork,
    GaussianKernel,
    RadialKernel,
    full_precision,
    median_distance,
    median_of_pairs,
    squared_distances,
)

PAIRS = 2**24  # pairs of elements at a time: 64 MB in float32
MEDIAN_ELEMENTS = 2000  # two million pairs


class ElementKernel(GaussianKernel):
    """What kernels on sets share: features are those of the elements, and the event shape is checked.

    Args:
        event_shape: (n, *element), n ≥ 2; the elements are numbers where nothing follows n.
        features: builds g from the shape of one element, (1,) for numbers; no BatchNorm.
        bandwidth: θ, instead of the median rule.

    Raises:
        UserError: observations are no sets of two or more, or the bandwidth is not positive.
    """

    def __init__(
        self, event_shape: tuple[int, ...], features: FeatureNetwork | None = None, bandwidth: float | None = None
    ) -> None:
        if not event_shape or event_shape[0] < 2:
            raise UserError(
                f"the kernel is {type(self).__name__}, but for observations of shape {tuple(event_shape)} it would see "
                "no sets of two or more; give observations of shape (set_size, *element), or use GaussianKernel."
            )
        self.element_shape = tuple(event_shape[1:])
        super().__init__(self.element_shape or (1,), features, bandwidth)

    def features(self, x: Tensor) -> Tensor:
        """g(x_na) of the elements of x (N, n, *element), shape (N, n, d), in at least float32.

        Raises:
            UserError: the elements have another shape.
        """
        if x.ndim < 2 or x.shape[2:] != self.element_shape:
            raise UserError(
                f"{type(self).__name__} was made for sets with elements of shape {self.element_shape}, but the "
                f"observations have shape {tuple(x.shape)}; give them as (N, set_size, *element)."
            )
        with full_precision(x.device):
            elements = self.network(x.reshape(-1, *(self.element_shape or (1,))))
        return elements.reshape(len(x), x.shape[1], -1)


class SetMeanKernel(ElementKernel):
    """k(X, Y) = exp(−‖mean_a g(x_a) − mean_b g(y_b)‖² / (2 θ²)), features g optional (the elements without them).

    Sets with equal means are the same to it: give features, or use :class:`SetGaussianKernel`. θ is set by
    :meth:`initialise` to the median distance between means.

    Args:
        event_shape: (n, *element), n ≥ 2; the elements are numbers where nothing follows n.
        features: builds g from the shape of one element, (1,) for numbers; no BatchNorm.
        bandwidth: θ, instead of the median rule.

    Raises:
        UserError: observations are no sets of two or more, or the bandwidth is not positive.
    """

    def features(self, x: Tensor) -> Tensor:
        """Means over each set of g(x_na) for x (N, n, *element), shape (N, d), in at least float32."""
        return super().features(x).mean(1)


class SetGaussianKernel(ElementKernel):
    """k(X, Y) = exp(−MMD²(X, Y) / (2 θ²)), MMD² ≥ 0 between the sets' empirical distributions (V-statistic).

    :meth:`initialise` sets s to the median distance between the elements of all sets, then θ to the median MMD
    between sets; for speed, of some 2 000 elements and 300 sets. A Gram matrix costs N² n² kernel values of elements,
    computed in blocks, and twice that with its gradient.

    Args:
        event_shape: (n, *element), n ≥ 2; the elements are numbers where nothing follows n.
        features: builds g from the shape of one element, (1,) for numbers; no BatchNorm.
        bandwidth: θ, between sets, instead of the median rule.
        inner_bandwidth: s, between elements, instead of the median rule.

    Raises:
        UserError: observations are no sets of two or more, or a bandwidth is not positive.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        features: FeatureNetwork | None = None,
        bandwidth: float | None = None,
        inner_bandwidth: float | None = None,
    ) -> None:
        super().__init__(event_shape, features, bandwidth)
        if inner_bandwidth is not None and not inner_bandwidth > 0:
            raise UserError(
                f"the kernel's inner_bandwidth is {inner_bandwidth}; give a positive number or leave it out "
                "(median rule)."
            )
        self.log_inner_bandwidth = nn.Parameter(torch.tensor(float(inner_bandwidth or 1.0)).log())
        self.inner_by_median = inner_bandwidth is None

    @property
    def inner_bandwidth(self) -> Tensor:
        """s, a scalar."""
        return self.log_inner_bandwidth.exp()

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """The median rule for s, then for θ, from sleep observations x (N, n, *element), N ≥ 2."""
        if self.inner_by_median:
            elements = self.features(x).flatten(0, 1)
            # At random, since in some sets an element's place tells what it is; always the same, for reruns.
            rows = torch.randperm(len(elements), generator=torch.Generator().manual_seed(0))[:MEDIAN_ELEMENTS]
            self.log_inner_bandwidth.copy_(median_distance(elements[rows.to(x.device)]).log())
        super().initialise(x)

    def typical_scale(self, features: Tensor) -> Tensor:
        """What θ is set to, from features (N, n, d) and s: the median MMD between sets, a scalar."""
        some = features[:EVERY_STEP_ROWS]
        return median_of_pairs(self._squared_distances(some, some))

    def gram(self, features: Tensor) -> Tensor:
        return RadialKernel.gram(self, features)  # by distances that are none between points

    def cross(self, features: Tensor, query: Tensor) -> Tensor:
        return RadialKernel.cross(self, features, query)

    def _squared_distances(self, a: Tensor, b: Tensor) -> Tensor:
        """MMD² between sets with features (N, n, d) and (M, m, d), shape (N, M)."""
        self_terms = self._self_terms(a)[:, None] + self._self_terms(b)
        return (self_terms - 2 * self._cross_terms(a, b)).clamp_min(0)

    def _cross_terms(self, a: Tensor, b: Tensor) -> Tensor:
        """mean_ab κ between sets of features (N, n, d) and (M, m, d), shape (N, M), in blocks of at most PAIRS."""
        columns = max(1, PAIRS // (a.shape[1] * b.shape[1]))
        rows = max(1, columns // len(b))
        return torch.cat(
            [
                torch.cat([_recomputed(self._cross_block, above, beside) for beside in b.split(columns)], dim=1)
                for above in a.split(rows)
            ]
        )

    def _cross_block(self, a: Tensor, b: Tensor) -> Tensor:
        values = self._inner(squared_distances(a.flatten(0, 1), b.flatten(0, 1)))
        return values.reshape(*a.shape[:2], *b.shape[:2]).mean((1, 3))

    def _self_terms(self, a: Tensor) -> Tensor:
        """mean_ab κ within each set of features (N, n, d), shape (N,), in blocks of at most PAIRS."""
        return torch.cat([_recomputed(self._self_block, rows) for rows in a.split(max(1, PAIRS // a.shape[1] ** 2))])

    def _self_block(self, a: Tensor) -> Tensor:
        centred = a - a.detach().mean(1, keepdim=True)
        norms = centred.square().sum(2)
        squared = norms[:, :, None] + norms[:, None, :] - 2 * centred @ centred.mT
        return self._inner(squared.clamp_min(0)).mean((1, 2))

    def _inner(self, squared: Tensor) -> Tensor:
        return torch.exp(-0.5 * squared / self.inner_bandwidth.to(squared.dtype).square())


def _recomputed(block: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """A block whose N n × M m intermediate values are not kept for the gradient, but computed anew."""
    return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
