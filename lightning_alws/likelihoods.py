"""Likelihoods p_θ(x|z) in exponential-family form, and the two ways to regress log p_θ(z, x).

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

import torch
from torch import Tensor
from torch.nn import functional

LOG_2_PI = math.log(2 * math.pi)
TensorMap = Callable[[Tensor], Tensor]


class Likelihood(ABC):
    """p(x|z_n) for N rows z_n, an exponential family with differentiable natural parameters."""

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
        """One draw x_n ~ p(x|z_n) for each row, shape (N, *event), without gradient."""

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
        inner = ((weights.T @ self.natural_parameters) * self.sufficient_statistics(x)).sum(-1)
        return inner - weights.T @ self.log_normaliser + weights.sum(0) * self.log_base_measure(x)


class Bernoulli(Likelihood):
    """x_d|z ~ Bernoulli(sigmoid(a_d)): η = a, S(x) = x, Ψ = Σ_d softplus(a_d).

    Args:
        logits: a, shape (N, *event).
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def natural_parameters(self) -> Tensor:
        return self.logits.flatten(1)

    @property
    def log_normaliser(self) -> Tensor:
        return functional.softplus(self.natural_parameters).sum(-1)

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    @torch.no_grad()
    def sample(self) -> Tensor:
        # torch.bernoulli raises for a NaN, on this rank alone; a NaN sample is found, named and skipped on all ranks.
        mean = self.mean
        return torch.where(mean.isnan(), mean, torch.bernoulli(mean.nan_to_num(0.5)))

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        return type(self)(rows(self.logits))


class Gaussian(Likelihood):
    """x|z ~ N(μ, σ² I) with one scale: η = (μ/σ², −1/(2σ²)), S(x) = (x, ‖x‖²), Ψ = ½(‖μ‖²/σ² + D log 2πσ²).

    Args:
        mean: μ, shape (N, *event).
        log_scale: log σ, a scalar tensor.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor) -> None:
        self._mean = mean
        self.log_scale = log_scale

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def precision(self) -> Tensor:
        """1/σ², a scalar."""
        return (-2 * self.log_scale).exp()

    @property
    def varying_parameters(self) -> Tensor:
        return self._mean.flatten(1) * self.precision

    @property
    def natural_parameters(self) -> Tensor:
        constant = (-0.5 * self.precision).expand(len(self._mean), 1)
        return torch.cat([self.varying_parameters, constant], dim=1)

    @property
    def log_normaliser(self) -> Tensor:
        mean = self._mean.flatten(1)
        return 0.5 * (mean.square().sum(-1) * self.precision + mean.shape[1] * (LOG_2_PI + 2 * self.log_scale))

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cat([x, x.square().sum(-1, keepdim=True)], dim=1)

    @torch.no_grad()
    def sample(self) -> Tensor:
        return self._mean + self.log_scale.exp() * torch.randn_like(self._mean)

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        return type(self)(rows(self._mean), shared(self.log_scale))

    def residual(self, weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of Σ_n W_nb ‖x_b − μ_n‖² = ‖x_b − m_b‖² + v_b when Σ_n W_nb = 1, each (B,).

        m_b = Σ_n W_nb μ_n estimates E[μ|x_b] and v_b = Σ_n W_nb ‖μ_n‖² − ‖m_b‖² the posterior variance of μ. With
        signed weights v_b may come out negative, which no posterior's variance is.
        """
        mean, x = self._mean.flatten(1), x.flatten(1)
        total = weights.sum(0)
        prediction = weights.T @ mean
        # Σ W‖x − μ‖² = ‖x − m‖² + (Σ W‖μ‖² − ‖m‖²) + (ΣW − 1)‖x‖²; the last term vanishes for weights that sum to 1.
        variance = weights.T @ mean.square().sum(-1) - prediction.square().sum(-1)
        return (x - prediction).square().sum(-1), variance + (total - 1) * x.square().sum(-1)
