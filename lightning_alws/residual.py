"""Regression of what a reference posterior leaves unexplained, instead of log p_θ itself.

For any function J_0 of x that is known, E[log p_θ(z, ·)|x] = J_0(x) + E[log p_θ(z, ·) − J_0(x)|x], so that

    Ĵ(x*) = J_0(x*) + Σ_n W_n* (log p_θ(z_n, ·) − J_0(x_n))

estimates the same as Σ_n W_n* log p_θ(z_n, ·) does, and is consistent whatever J_0 is: a regression with a mean
function (Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, section 2.7). Where posteriors are
narrow it errs several times less: ∇_W log p(x|z) = (x zᵀ − W z zᵀ)/σ² of a linear model is a difference of two
large numbers, each predicted with an error, 1/σ² times over. With J_0 from a posterior near the true one they cancel
before anything is predicted. The idea is ours, not the published code's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from lightning_alws.generative import PlugIn
from lightning_alws.likelihoods import TensorMap
from lightning_alws.precision import full_precision


class Reference(ABC):
    """Natural parameters and log-normaliser of p_θ(x|z), expected under a reference posterior q_0(z|x).

    q_0 is held fixed, as the true posterior is in E[log p_θ(z, ·)|x]; the expectations are differentiable in θ.
    """

    @abstractmethod
    def expectation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E_q0[η(z)|x_b] (B, K) and E_q0[Ψ(z)|x_b] (B,) for observations x (B, *event)."""

    @abstractmethod
    def map(self, function: TensorMap) -> Self:
        """The same with the function applied to the model's tensors."""


@dataclass(frozen=True)
class ResidualPlugIn(PlugIn):
    """The plug-in joint, with natural parameters and log-normaliser regressed as deviations from a reference.

    Attributes:
        reference: what is subtracted from the targets at x_n and added to the prediction at x*.
    """

    reference: Reference

    is_sum = False

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        with full_precision(weights.device):
            parameters, normaliser = self.reference.expectation(x)
            sleep_parameters, sleep_normaliser = self.reference.expectation(self.x)
            parameters = parameters + weights.T @ (self.likelihood.natural_parameters - sleep_parameters)
            normaliser = normaliser + weights.T @ (self.likelihood.log_normaliser - sleep_normaliser)
            expected = (parameters * self.likelihood.sufficient_statistics(x)).sum(-1) - normaliser
            expected = expected + self.likelihood.log_base_measure(x)
            return expected if self.log_prior is None else expected + weights.T @ self.log_prior

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        parameters, normaliser = self.reference.expectation(self.x)
        varying = self.likelihood.natural_parameters - parameters
        return varying, (self.likelihood.log_normaliser - normaliser)[:, None]

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        log_prior = None if self.log_prior is None else rows(self.log_prior)
        return type(self)(rows(self.x), self.likelihood.map(rows, shared), log_prior, self.reference.map(shared))
