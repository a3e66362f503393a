"""Gaussian likelihoods with one scale, with one scale for each dimension, and the log-normal."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.likelihoods.family import LOG_2_PI, Likelihood, TensorMap, check_support


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


class DiagonalGaussian(Likelihood):
    """x_d|z ~ N(μ_d, σ_d²): η = (μ/σ², −1/(2σ²)), S(x) = (x, x²), Ψ = ½ Σ_d (μ_d²/σ_d² + log 2πσ_d²).

    Args:
        mean: μ, shape (N, *event).
        log_scale: log σ; one for each row in shape (N, *event), or shared by all rows in shape (*event). Dimensions
            of the event may be 1, and left out where shared: a scalar is one σ for all.

    Raises:
        UserError: the shape of ``log_scale`` is neither.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor) -> None:
        try:
            log_scale.expand(mean.shape)
            possible = log_scale.dim() < mean.dim() or len(log_scale) == len(mean)
        except RuntimeError:
            possible = False
        if not possible:
            raise UserError(
                f"log_scale has shape {tuple(log_scale.shape)}, for a mean of shape {tuple(mean.shape)}; give that "
                f"same shape for scales of each row, or {tuple(mean.shape[1:])} for scales that all rows share."
            )
        self._mean = mean
        self.log_scale = log_scale

    @property
    def mean(self) -> Tensor:
        return self._mean

    @property
    def scale_is_shared(self) -> bool:
        """Whether σ is the same for all rows."""
        return self.log_scale.dim() < self._mean.dim()

    @property
    def precision(self) -> Tensor:
        """1/σ_d², shape (N, D), D the number of entries of one observation."""
        return (-2 * self.log_scale).exp().expand(self._mean.shape).flatten(1)

    @property
    def varying_parameters(self) -> Tensor:
        return self._mean.flatten(1) * self.precision if self.scale_is_shared else self.natural_parameters

    @property
    def natural_parameters(self) -> Tensor:
        precision = self.precision
        return torch.cat([self._mean.flatten(1) * precision, -0.5 * precision], dim=1)

    @property
    def log_normaliser(self) -> Tensor:
        return 0.5 * (self._mean.flatten(1).square() * self.precision + self._log_variance + LOG_2_PI).sum(-1)

    @property
    def _log_variance(self) -> Tensor:
        return 2 * self.log_scale.expand(self._mean.shape).flatten(1)

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cat([x, x.square()], dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        # By residuals: ⟨η, S⟩ − Ψ is a small difference of large numbers where the mean is many σ from 0.
        squared = (x - self._mean).flatten(1).square()
        return -0.5 * (squared * self.precision + self._log_variance + LOG_2_PI).sum(-1)

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        # The same from a common origin amid the means, for the same reason; the density does not change.
        origin = self._mean.detach().mean(0)
        centred = DiagonalGaussian(self._mean - origin, self.log_scale)
        return super(DiagonalGaussian, centred).expectation(weights, x - origin)

    @torch.no_grad()
    def sample(self) -> Tensor:
        return self._mean + self.log_scale.exp() * torch.randn_like(self._mean)

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        scale = shared(self.log_scale) if self.scale_is_shared else rows(self.log_scale)
        return type(self)(rows(self._mean), scale)


class LogNormal(Likelihood):
    """log x_d|z ~ N(m_d, σ_d²): η = (m/σ² − 1, −1/(2σ²)), S(x) = (log x, (log x)²), Ψ as the Gaussian's.

    An observation outside (0, ∞) has density 0 under every z, and its −∞ would make the whole regression worthless: it
    is refused instead. Samples that leave the range of their floating-point type are moved to its end.

    Args:
        location: m, shape (N, *event).
        log_scale: log σ, as :class:`DiagonalGaussian` takes it.

    Raises:
        UserError: an observation is outside (0, ∞), or the shape of ``log_scale`` does not fit.
    """

    def __init__(self, location: Tensor, log_scale: Tensor) -> None:
        self.log = DiagonalGaussian(location, log_scale)

    @property
    def mean(self) -> Tensor:
        return (self.log.mean + 0.5 * (2 * self.log.log_scale).exp()).exp()

    @property
    def varying_parameters(self) -> Tensor:
        if not self.log.scale_is_shared:
            return self.natural_parameters
        return self.log.varying_parameters - 1

    @property
    def natural_parameters(self) -> Tensor:
        first, second = self.log.natural_parameters.chunk(2, dim=1)
        return torch.cat([first - 1, second], dim=1)

    @property
    def log_normaliser(self) -> Tensor:
        return self.log.log_normaliser

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        return self.log.sufficient_statistics(self._log(x))

    def log_prob(self, x: Tensor) -> Tensor:
        log_x = self._log(x)
        return self.log.log_prob(log_x) - log_x.flatten(1).sum(-1)

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        log_x = self._log(x)
        return self.log.expectation(weights, log_x) - weights.sum(0) * log_x.flatten(1).sum(-1)

    @torch.no_grad()
    def sample(self) -> Tensor:
        limits = torch.finfo(self.log.mean.dtype)
        return self.log.sample().exp().clamp(limits.tiny, limits.max)

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        log = self.log.map(rows, shared)
        return type(self)(log.mean, log.log_scale)

    @staticmethod
    def _log(x: Tensor) -> Tensor:
        check_support("LogNormal", x, (x <= 0) | x.isinf(), "numbers between 0 and ∞")
        return x.log()
