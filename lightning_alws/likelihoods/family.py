"""What every likelihood p_θ(x|z) in exponential-family form can do.

An exponential family over the rows z_n is

    log p(x|z_n) = ⟨η(z_n), S(x)⟩ − Ψ(z_n) + log h(x),

so that a regression of η and Ψ on x gives the plug-in estimate of Ĵ(x*) for every x* at once, without ever forming
one number per pair (n, x*). Source: Wenliang, Moskovitz, Kanagawa, Sahani, "Amortised Learning by Wake-Sleep",
ICML 2020, Algorithm 1 (there h^η and h^Ψ).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from torch import Tensor

from lightning_alws.errors import UserError

LOG_2_PI = math.log(2 * math.pi)
TensorMap = Callable[[Tensor], Tensor]


class Likelihood(ABC):
    """p(x|z_n) for N rows z_n, an exponential family with differentiable natural parameters.

    Attributes:
        exponential_family: false for one that is none: it raises a UserError wherever natural parameters are asked for,
            and offers ``log_prob``, ``mean`` and ``sample`` alone.
    """

    exponential_family: bool = True

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[x|z_n], shape (N, *event)."""

    @property
    @abstractmethod
    def natural_parameters(self) -> Tensor:
        """η(z_n), shape (N, K)."""

    @property
    def varying_parameters(self) -> Tensor:
        """The components of η(z_n) that depend on z, shape (N, K') with K' ≤ K: the ones a kernel can learn from."""
        return self.natural_parameters

    @property
    @abstractmethod
    def log_normaliser(self) -> Tensor:
        """Ψ(z_n), shape (N,)."""

    @abstractmethod
    def sufficient_statistics(self, x: Tensor) -> Tensor:
        """S(x) for B observations x (B, *event), shape (B, K)."""

    def log_base_measure(self, x: Tensor) -> Tensor:
        """log h(x), shape (B,)."""
        return x.new_zeros(len(x))

    @abstractmethod
    def sample(self) -> Tensor:
        """One draw x_n ~ p(x|z_n) for each row, shape (N, *event), without gradient; NaN where a parameter is NaN."""

    @abstractmethod
    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        """The likelihood with ``rows`` applied to tensors with one row per z_n, ``shared`` to what all rows share."""

    def detach(self) -> Self:
        """The likelihood without gradient."""
        return self.map(Tensor.detach, Tensor.detach)

    def __getitem__(self, rows: slice) -> Self:
        """The likelihood of a slice of the rows."""
        return self.map(lambda tensor: tensor[rows], lambda tensor: tensor)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x_n|z_n) row by row for x (N, *event), shape (N,)."""
        inner = (self.natural_parameters * self.sufficient_statistics(x)).sum(-1)
        return inner - self.log_normaliser + self.log_base_measure(x)

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        """Σ_n W_nb log p_θ(x_b|z_n) for weights (N, B) and x (B, *event), shape (B,); differentiable in θ."""
        parameters, statistics = self.natural_parameters, self.sufficient_statistics(x)
        if weights.requires_grad and not parameters.requires_grad:
            # A kernel's objective: log p of every pair makes the gradient of the weights, with no second product.
            inner = (weights * (parameters @ statistics.T)).sum(0)
        else:
            inner = ((weights.T @ parameters) * statistics).sum(-1)
        return inner - weights.T @ self.log_normaliser + weights.sum(0) * self.log_base_measure(x)


def check_support(family: str, x: Tensor, outside: Tensor, expected: str) -> None:
    """Raise a UserError that names the first observation outside a family's support.

    NaN is not to be counted as outside: a NaN sample is found, named and its step skipped by all processes, while an
    exception on one of them would leave the others waiting.

    Args:
        x: observations (B, *event).
        outside: where they are outside, of the same shape.
        expected: what they must be.
    """
    if outside.any():
        raise UserError(
            f"the likelihood {family} got the observation {x[outside][0].item()}, but takes {expected} only; change "
            "the data, or use another likelihood."
        )
