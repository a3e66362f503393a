"""Kernels on observations, k(x, x'), on optional feature networks, with the bandwidth set by the median rule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.gaussian_matrices import gaussian_cross, gaussian_gram
from lightning_alws.precision import full_precision

FeatureNetwork = Callable[[tuple[int, ...]], nn.Module]


class ModelFeatures(nn.Module):
    """Features g(x) that use the model as it stands in training, say what it would predict of x.

    Amortised learning may regress on any function of the observations, one with the current θ in it as well: nothing
    is differentiated through the kernel's features of sleep samples, and sleep and wake meet the same θ in each step.
    """

    def attach(self, model: nn.Module) -> None:
        """Called once with the model in training, p_θ(z) p_θ(x|z); raise a UserError for one that does not fit."""
        self.__dict__["model"] = model  # not a part: its parameters belong to no kernel


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """‖a_i − b_j‖² for a (N, d) and b (M, d), shape (N, M), by expansion and never negative.

    Both sides are first shifted by the mean of ``a``: without it, features far from the origin lose all digits of
    their differences in float32.
    """
    centre = a.detach().mean(0)
    a, b = a - centre, b - centre
    return torch.addmm(a.square().sum(1, keepdim=True) + b.square().sum(1), a, b.T, alpha=-2).clamp_min(0)


EVERY_STEP_ROWS = 300  # 45 000 pairs: the median within a per cent or so, in a millisecond


def median_of_pairs(squared: Tensor) -> Tensor:
    """The median of √squared_ij over pairs i < j, from squared distances (N, N), N ≥ 2; a scalar, never 0."""
    above = torch.triu_indices(len(squared), len(squared), 1, device=squared.device)
    distances = squared[above[0], above[1]].sqrt()
    # The mean of the two middle values, as numpy's median in the published code; torch's is the lower one, found
    # without the sorting that a quantile takes. The upper one is the same, or the least of the values above it.
    lower = distances.median()
    beyond = distances > lower
    upper = distances.where(beyond, math.inf).min().where(2 * beyond.sum() >= len(distances), lower)
    median = (lower.double() + upper.double()).mul(0.5).to(squared.dtype)
    return median.clamp_min(torch.finfo(squared.dtype).tiny ** 0.5)  # the kernel squares it


def median_distance(features: Tensor) -> Tensor:
    """The median of ‖g_i − g_j‖ over pairs i < j of features (N, d), N ≥ 2; a scalar, never 0."""
    return median_of_pairs(squared_distances(features, features))


class Kernel(nn.Module, ABC):
    """k(x, x') of features g(x), with one scale s that is kept as log s; what a regression needs of a kernel.

    Args:
        event_shape: shape of one observation.
        features: builds g from the event shape; no BatchNorm, since sleep and wake batches would then be normalised
            differently. Without it, g is the flattened x.
        bandwidth: s, instead of the rule that :meth:`initialise` follows.

    Raises:
        UserError: the bandwidth is not positive.
    """

    def __init__(
        self, event_shape: tuple[int, ...], features: FeatureNetwork | None = None, bandwidth: float | None = None
    ) -> None:
        super().__init__()
        if bandwidth is not None and not bandwidth > 0:
            raise UserError(
                f"the kernel's bandwidth is {bandwidth}; give a positive number or leave it out (median rule)."
            )
        self.network = features(event_shape) if features is not None else nn.Flatten()
        self.log_bandwidth = nn.Parameter(torch.tensor(float(bandwidth or 1.0)).log())
        self.by_median = bandwidth is None

    def features(self, x: Tensor) -> Tensor:
        """g(x) for x (N, *event), shape (N, d), in at least float32."""
        with full_precision(x.device):
            return self.network(x).flatten(1)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set s from sleep observations x (N, *event) of the initial model, N ≥ 2, unless it was given."""
        if self.by_median:
            self.log_bandwidth.copy_(self.typical_scale(self.features(x)).log())

    def typical_scale(self, features: Tensor) -> Tensor:
        """What s is set to, from features (N, d): the median distance between them, a scalar."""
        return median_distance(features)

    def observe(self, features: Tensor) -> None:
        """Called with the sleep features (N, d) of each regression, before :meth:`gram`; here of no effect."""

    @property
    def observed_rows(self) -> float:
        """How many of the features :meth:`observe` looks at, from the first one on; by default all, where it is."""
        return 0 if type(self).observe is Kernel.observe else math.inf

    @abstractmethod
    def gram(self, features: Tensor) -> Tensor:
        """K_ij = k(x_i, x_j) from features (N, d), shape (N, N); a new matrix, which the regression may write to."""

    @abstractmethod
    def cross(self, features: Tensor, query: Tensor) -> Tensor:
        """k(x_i, x*_b) from features (N, d) and (B, d), shape (N, B)."""

    @property
    def bandwidth(self) -> Tensor:
        """s, a scalar."""
        return self.log_bandwidth.exp()


class RadialKernel(Kernel):
    """A kernel that depends on the distance between features alone, and is 1 where they coincide."""

    def gram(self, features: Tensor) -> Tensor:
        """K_ij = k(x_i, x_j) from features (N, d), shape (N, N), exactly 1 on the diagonal."""
        eye = torch.eye(len(features), dtype=torch.bool, device=features.device)
        return self._of_squared_distances(self._squared_distances(features, features).masked_fill(eye, 0.0))

    def cross(self, features: Tensor, query: Tensor) -> Tensor:
        return self._of_squared_distances(self._squared_distances(features, query))

    def _squared_distances(self, a: Tensor, b: Tensor) -> Tensor:
        """Squared distances between features (N, d) and (M, d), shape (N, M), never negative."""
        return squared_distances(a, b)

    def spectral_scale(self, count: int, draws: torch.Generator) -> Tensor:
        """Random r such that ω = r ν, ν ~ N(0, I), has the kernel's spectral density at s = 1, shape (count,).

        By Bochner's theorem k(x, x') = E cos(ω·(g(x) − g(x'))/s).

        Args:
            count: how many.
            draws: a CPU generator; the result is float64 on the CPU.
        """
        raise UserError(f"the spectrum of {type(self).__name__} is not known; use GaussianKernel or MaternKernel.")

    @abstractmethod
    def _of_squared_distances(self, squared: Tensor) -> Tensor:
        """The kernel's values from squared distances, of the same shape."""


def of_feature_distances(kernel: Kernel) -> bool:
    """Whether k(x, x') is a function of ‖g(x) − g(x')‖ alone, as random features take it to be.

    Not so for a radial kernel that bends the features first, or measures distances of its own: it then has methods of
    its own for one of these three.
    """
    if not isinstance(kernel, RadialKernel):
        return False
    kind = type(kernel)
    return (
        kind.gram in (RadialKernel.gram, GaussianKernel.gram)
        and kind.cross in (RadialKernel.cross, GaussianKernel.cross)
        and kind._squared_distances is RadialKernel._squared_distances
    )


class GaussianKernel(RadialKernel):
    """k(x, x') = exp(−‖g(x) − g(x')‖² / (2 s²)), features g optional (the flattened x without them).

    The bandwidth s is kept as log s and set by :meth:`initialise` to the median distance between features.
    Source: the published code (kevin-w-li/al-ws, ``Kernel`` with p = ∞).

    Args:
        event_shape: shape of one observation.
        features: builds g from the event shape; no BatchNorm, since sleep and wake batches would then be normalised
            differently.
        bandwidth: s, instead of the median rule.

    Raises:
        UserError: the bandwidth is not positive.
    """

    def gram(self, features: Tensor) -> Tensor:
        return gaussian_gram(self._in_bandwidths(features, features))

    def cross(self, features: Tensor, query: Tensor) -> Tensor:
        return gaussian_cross(*(self._in_bandwidths(side, features) for side in (features, query)))

    def _in_bandwidths(self, features: Tensor, samples: Tensor) -> Tensor:
        """Features (M, d) from the mean of those of the samples (N, d), in units of s."""
        return (features - samples.detach().mean(0)) / self.bandwidth.to(features.dtype)

    def spectral_scale(self, count: int, draws: torch.Generator) -> Tensor:
        return torch.ones(count, dtype=torch.float64)

    def _of_squared_distances(self, squared: Tensor) -> Tensor:
        return torch.exp(-0.5 * squared / self.bandwidth.to(squared.dtype).square())


class MedianKernel(GaussianKernel):
    """The Gaussian kernel whose bandwidth follows the model: s = c · median distance between current sleep features.

    The published kernel keeps the bandwidth of the initial model, which makes noise; once the samples resemble data
    their distances are smaller, the kernel is too wide, and the weights grow large with both signs.

    Trained features have the gradient of s as well, which makes it orthogonal to their common scale. Were s a constant
    in it, features that had better be closer together in bandwidths would shrink, s after them, and so on for ever.

    Args:
        event_shape: shape of one observation.
        features: builds g from the event shape.
        multiple: c; trained where the kernel is.
    """

    median: Tensor

    def __init__(
        self, event_shape: tuple[int, ...], features: FeatureNetwork | None = None, multiple: float = 1.0
    ) -> None:
        super().__init__(event_shape, features, bandwidth=multiple)
        self.register_buffer("median", torch.ones(()))
        self._growth: Tensor | float = 1.0

    def observe(self, features: Tensor) -> None:
        """Set the median from the sleep features (N, d) of this regression."""
        some = features[:EVERY_STEP_ROWS]
        self.median.copy_(median_distance(some.detach()))
        # The median's own gradient is that of one pair: it grows in the ratio of the root mean square distance.
        self._growth = 1.0
        if torch.is_grad_enabled() and some.requires_grad:
            spread = (some - some.detach().mean(0)).square().sum().clamp_min(torch.finfo(some.dtype).tiny)
            self._growth = (spread / spread.detach()).sqrt()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_growth": 1.0}  # a copy has nothing to differentiate through

    @property
    def observed_rows(self) -> float:
        return EVERY_STEP_ROWS

    @property
    def bandwidth(self) -> Tensor:
        return self.log_bandwidth.exp() * self.median * self._growth


class MaternKernel(RadialKernel):
    """k(x, x') = e^{−r} · {1; 1 + r; 1 + r + r²/3} for ν = 1/2, 3/2, 5/2, with r = √(2ν) ‖g(x) − g(x')‖ / s.

    Rougher than the Gaussian kernel, its limit ν → ∞: its Gram matrix is better conditioned, and what lies between
    two samples is less certain. The bandwidth s is set by :meth:`initialise` to the median distance between features.
    Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, equations 4.14 and 4.17
    (http://gaussianprocess.org/gpml); published code ``Kernel`` with p = ν.

    Args:
        event_shape: shape of one observation.
        features: builds g from the event shape; no BatchNorm.
        bandwidth: s, instead of the median rule.
        smoothness: ν, one of 0.5, 1.5 and 2.5.

    Raises:
        UserError: the bandwidth is not positive, or the smoothness is another.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        features: FeatureNetwork | None = None,
        bandwidth: float | None = None,
        smoothness: float = 1.5,
    ) -> None:
        super().__init__(event_shape, features, bandwidth)
        if smoothness not in (0.5, 1.5, 2.5):
            raise UserError(f"the kernel's smoothness is {smoothness}; give 0.5, 1.5 or 2.5.")
        self.smoothness = smoothness

    def spectral_scale(self, count: int, draws: torch.Generator) -> Tensor:
        """√(2ν/χ²_{2ν}): ω has Student's t distribution with 2ν degrees of freedom (Rasmussen and Williams, 4.15)."""
        freedom = round(2 * self.smoothness)
        squares = torch.randn(freedom, count, generator=draws, dtype=torch.float64).square().sum(0)
        return (freedom / squares).sqrt()

    def _of_squared_distances(self, squared: Tensor) -> Tensor:
        scaled = 2 * self.smoothness * squared / self.bandwidth.to(squared.dtype).square()
        # The root's derivative is infinite at 0: there the root of a constant is taken, whose gradient is zero.
        apart = scaled > 0
        r = torch.where(apart, torch.where(apart, scaled, 1.0).sqrt(), 0.0)
        decay = torch.exp(-r)
        if self.smoothness == 0.5:
            return decay
        return decay * (1 + r if self.smoothness == 1.5 else 1 + r + scaled / 3)


class PolynomialKernel(Kernel):
    """k(x, x') = (c + ⟨g(x), g(x')⟩ / s)^p: ridge regression on all monomials of the features up to degree p.

    s is set by :meth:`initialise` to the median of ‖g(x)‖², so that the inner product of typical features lies in
    [−1, 1] beside c and k(x, x) is about (c + 1)^p, whatever the features' scale and number. Unlike the other
    kernels' predictions, this one's grow without bound away from the samples.
    Source: the published code (kevin-w-li/al-ws), which has the median distance for s instead.

    Args:
        event_shape: shape of one observation.
        features: builds g from the event shape; no BatchNorm.
        bandwidth: s, instead of the median squared norm.
        degree: p, a whole number, at least 1.
        offset: c, at least 0; with 0, only monomials of exactly degree p.

    Raises:
        UserError: the bandwidth is not positive, or degree or offset too small.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        features: FeatureNetwork | None = None,
        bandwidth: float | None = None,
        degree: int = 2,
        offset: float = 1.0,
    ) -> None:
        super().__init__(event_shape, features, bandwidth)
        if not (degree >= 1 and float(degree).is_integer()):
            raise UserError(f"the kernel's degree is {degree}; give a whole number, at least 1.")
        if not offset >= 0:
            raise UserError(
                f"the kernel's offset is {offset}; give at least 0, since the kernel is not positive "
                "semi-definite below."
            )
        self.degree, self.offset = int(degree), offset

    def typical_scale(self, features: Tensor) -> Tensor:
        """What s is set to, from features (N, d): the median of their squared norms, a scalar, never 0."""
        norms = features.square().sum(1)
        return norms.double().quantile(0.5).to(norms.dtype).clamp_min(torch.finfo(norms.dtype).tiny)

    def gram(self, features: Tensor) -> Tensor:
        return self.cross(features, features)

    def cross(self, features: Tensor, query: Tensor) -> Tensor:
        return (self.offset + features @ query.T / self.bandwidth.to(features.dtype)) ** self.degree
