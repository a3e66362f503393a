"""What every prior can do, and the priors without parameters.

The gradient of log p_θ(z) with respect to the model's parameters is zero for these, and a model may leave it out of
what it regresses.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.generative import Latents
from lightning_alws.likelihoods import LOG_2_PI


class Prior(nn.Module, ABC):
    """p_θ(z), on the device and in the dtype the module was moved to.

    Attributes:
        learnt: whether it has parameters.
        real: whether z has a density on the real numbers, which a Gaussian could approximate; false where some of z is
            discrete or confined to a curve.
    """

    learnt: bool = False
    real: bool = True
    _like: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Device and dtype of priors without parameters.
        self.register_buffer("_like", torch.zeros(()), persistent=False)

    @abstractmethod
    def sample(self, count: int) -> Tensor:
        """z_n ~ p_θ(z), shape (count, ...), without gradient."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log p_θ(z_n) for z (N, ...), shape (N,), differentiable in θ."""

    def values(self, z: Tensor) -> Tensor:
        """The real numbers in z, which a decoder network takes, shape (N, D); here all of z."""
        return z

    def statistics(self, z: Tensor) -> Latents:
        """Real numbers of z whose posterior means mean something; here those that a decoder takes."""
        return self.values(z)


class PriorBuilder(Protocol):
    """Builds a prior over vectors of ``dim`` numbers, as most classes of priors do."""

    def __call__(self, *, dim: int) -> Prior:
        """The prior."""
        ...


class StandardNormal(Prior):
    """z ~ N(0, I), shape (N, dim).

    Raises:
        UserError: ``dim`` is less than 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_at_least("prior", dim=(dim, 1))
        self.dim = dim

    def sample(self, count: int) -> Tensor:
        return torch.randn(count, self.dim, device=self._like.device, dtype=self._like.dtype)

    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2_PI).sum(-1)


class LaplacePrior(Prior):
    """z_d ~ Laplace(0, 1) independently, p(z_d) = ½ exp(−|z_d|), shape (N, dim).

    Raises:
        UserError: ``dim`` is less than 1.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_at_least("prior", dim=(dim, 1))
        self.dim = dim

    def sample(self, count: int) -> Tensor:
        # An exponential with a random sign.
        size = torch.empty(count, self.dim, device=self._like.device, dtype=self._like.dtype).exponential_()
        return torch.where(torch.rand_like(size) < 0.5, -size, size)

    def log_prob(self, z: Tensor) -> Tensor:
        return -(z.abs() + math.log(2)).sum(-1)


class UniformPrior(Prior):
    """z_d ~ U(low, high) independently, shape (N, dim); log density −∞ outside [low, high].

    Raises:
        UserError: ``dim`` is less than 1, or ``low`` and ``high`` are no interval.
    """

    def __init__(self, dim: int, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        check_at_least("prior", dim=(dim, 1))
        if not -math.inf < low < high < math.inf:
            raise UserError(
                f"prior.low is {low} and prior.high is {high}; give two finite numbers, low less than high."
            )
        self.dim, self.low, self.high = dim, low, high

    def sample(self, count: int) -> Tensor:
        unit = torch.rand(count, self.dim, device=self._like.device, dtype=self._like.dtype)
        return self.low + (self.high - self.low) * unit

    def log_prob(self, z: Tensor) -> Tensor:
        outside = ((z < self.low) | (z > self.high)).any(-1)
        return z.new_full((len(z),), -self.dim * math.log(self.high - self.low)).masked_fill(outside, -math.inf)


class CirclePrior(Prior):
    """z = (cos a, sin a) with a ~ U(−π, π), shape (N, 2); density 1/(2π) with respect to the length of arc."""

    real = False

    def sample(self, count: int) -> Tensor:
        angle = 2 * math.pi * torch.rand(count, device=self._like.device, dtype=self._like.dtype) - math.pi
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    def log_prob(self, z: Tensor) -> Tensor:
        """−log 2π for z (N, 2), taken to lie on the circle."""
        return z.new_full((len(z),), -LOG_2_PI)
