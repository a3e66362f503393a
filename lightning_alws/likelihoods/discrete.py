"""Likelihoods of discrete observations: Bernoulli, Poisson and categorical."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from lightning_alws.likelihoods.family import Likelihood, TensorMap, check_support

LARGEST_RATE = 1e18  # torch.poisson returns −2⁶³ for rates beyond the 64-bit integers


class Bernoulli(Likelihood):
    """x_d|z ~ Bernoulli(sigmoid(a_d)): η = a, S(x) = x, Ψ = Σ_d softplus(a_d).

    Args:
        logits: a, shape (N, *event).
        mean: sigmoid(a), where it is known and neither 0 nor 1: Ψ = −Σ_d log(1 − mean_d) then takes a quarter of the
            time of the softplus.
    """

    def __init__(self, logits: Tensor, mean: Tensor | None = None) -> None:
        self.logits, self._mean = logits, mean

    @classmethod
    def of_mean(cls, mean: Tensor) -> Self:
        """The law of means in (0, 1), shape (N, *event)."""
        return cls(mean.logit(), mean)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid() if self._mean is None else self._mean

    @property
    def natural_parameters(self) -> Tensor:
        return self.logits.flatten(1)

    @property
    def log_normaliser(self) -> Tensor:
        if self._mean is None:
            return functional.softplus(self.natural_parameters).sum(-1)
        return -(1 - self._mean.flatten(1)).log().sum(-1)

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    @torch.no_grad()
    def sample(self) -> Tensor:
        return coins(self.mean)

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        return type(self)(rows(self.logits), None if self._mean is None else rows(self._mean))


def coins(probabilities: Tensor) -> Tensor:
    """1 with each of the probabilities and 0 otherwise, of their shape and dtype; NaN where one is NaN.

    In a fifth of the time of ``torch.bernoulli`` on a CPU, and without its error for a NaN, which would end one process
    alone: a NaN sample is found, named and its step skipped by all. As there, uniforms u lie on the multiples of 2⁻²⁴
    (2⁻⁵³ in float64), so that P(u < p) is the next one from p on: right to less than 6e-8, the spacing of float32 below
    1, but a probability below 2⁻²⁴ that is not 0 comes true as often as 2⁻²⁴ does.
    """
    uniform = torch.rand_like(probabilities, dtype=torch.promote_types(probabilities.dtype, torch.float32))
    # u − p has the sign of the comparison, floor makes it −1 or 0, and both pass a NaN on; in place, as memory is slow.
    return uniform.sub_(probabilities).floor_().abs_().to(probabilities.dtype)


class Poisson(Likelihood):
    """x_d|z ~ Poisson(r_d): η = log r, S(x) = x, Ψ = Σ_d r_d, log h = −Σ_d log x_d!.

    Observations are counts, of an integer or a floating-point type; samples have the type of ``log_rate``, and are NaN
    where the rate is larger than any integer torch can draw.

    Args:
        log_rate: log r, shape (N, *event).

    Raises:
        UserError: an observation is not one of 0, 1, 2, …
    """

    def __init__(self, log_rate: Tensor) -> None:
        self.log_rate = log_rate

    @property
    def mean(self) -> Tensor:
        return self.log_rate.exp()

    @property
    def natural_parameters(self) -> Tensor:
        return self.log_rate.flatten(1)

    @property
    def log_normaliser(self) -> Tensor:
        return self.natural_parameters.exp().sum(-1)

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        x = x.to(self.log_rate.dtype)
        check_support("Poisson", x, (x < 0) | x.isinf() | (x.isfinite() & (x != x.floor())), "counts 0, 1, 2, …")
        return x.flatten(1)

    def log_base_measure(self, x: Tensor) -> Tensor:
        return -torch.lgamma(x.to(self.log_rate.dtype) + 1).flatten(1).sum(-1)

    @torch.no_grad()
    def sample(self) -> Tensor:
        # As for coins: torch.poisson raises for a NaN.
        rate = self.mean
        possible = rate < LARGEST_RATE
        return torch.where(possible, torch.poisson(torch.where(possible, rate, 0.0)), torch.nan)

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        return type(self)(rows(self.log_rate))


class Categorical(Likelihood):
    """x_d|z ~ Cat(softmax(a_d)) on the classes 0 … C − 1: η = a, S(x) = x as one-hot vectors, Ψ = Σ_d logsumexp(a_d).

    Observations are indices of classes, of an integer or a floating-point type; samples have the type of ``logits``,
    so that a kernel can take them as they are.

    Args:
        logits: a, shape (N, *event, C).

    Raises:
        UserError: an observation is not one of 0 … C − 1.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[-1]

    @property
    def probabilities(self) -> Tensor:
        """p(x_d = c|z_n), shape (N, *event, C)."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        """The mean index Σ_c c p(x_d = c|z_n), shape (N, *event); of meaning only where the classes are ordered."""
        return self.probabilities @ torch.arange(self.num_classes, device=self.logits.device, dtype=self.logits.dtype)

    @property
    def natural_parameters(self) -> Tensor:
        return self.logits.flatten(1)

    @property
    def log_normaliser(self) -> Tensor:
        return self.logits.logsumexp(-1).flatten(1).sum(-1)

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """One-hot vectors (B, K), K = C · number of entries of one observation, the class running fastest."""
        x, count = x.to(self.logits.dtype), self.num_classes
        outside = (x < 0) | (x >= count) | (x.isfinite() & (x != x.floor()))
        check_support("Categorical", x, outside, f"indices 0 to {count - 1} of its {count} classes")
        one_hot = (x[..., None] == torch.arange(count, device=x.device)).to(x.dtype)
        return torch.where(x[..., None].isnan(), x[..., None], one_hot).flatten(1)

    @torch.no_grad()
    def sample(self) -> Tensor:
        # As for coins: torch.multinomial raises for a NaN.
        probabilities = self.probabilities.flatten(0, -2)
        drawn = torch.multinomial(probabilities.nan_to_num(1.0), 1)[:, 0].to(self.logits.dtype)
        return torch.where(probabilities.isnan().any(-1), torch.nan, drawn).view(self.logits.shape[:-1])

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        return type(self)(rows(self.logits))
