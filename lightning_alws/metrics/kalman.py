"""The linear-Gaussian state space model in closed form: exact likelihood, smoother, and maximum likelihood by EM.

    z_1 ~ N(m, S),   z_t = A z_{t−1} + N(0, Q),   x_t = C z_t + N(0, R)

Source: Shumway and Stoffer, "An approach to time series smoothing and forecasting using the EM algorithm", Journal of
Time Series Analysis 3, 1982. Covariances depend on no observation, so that series of one length share them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_alws.likelihoods import LOG_2_PI

TOLERANCE = 1e-6  # of the mean log-likelihood of a time step, over CHECK_EVERY iterations
CHECK_EVERY = 20
MAX_ITERATIONS = 5000


@dataclass(frozen=True)
class Smoothed:
    """Moments of z given the whole series: means (B, T, D_z), covariances (T, D_z, D_z) and Cov(z_t, z_{t−1})."""

    mean: Tensor
    covariance: Tensor
    lagged: Tensor  # (T − 1, D_z, D_z), from t = 2 on


@dataclass(frozen=True)
class KalmanModel:
    """The model's parameters, all float64: A (D_z, D_z), C (D_x, D_z), Q, R diagonal, m (D_z,), S."""

    dynamics: Tensor
    loadings: Tensor
    process: Tensor
    observation: Tensor
    initial_mean: Tensor
    initial_covariance: Tensor

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x) in nats of series x (B, T, D_x), shape (B,); differentiable in the parameters."""
        return self._filter(x.double())[2]

    def _filter(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """E[z_t|x_1…x_t] (B, D_z) and its covariance for each t, and log p(x) (B,)."""
        means, covariances, log_marginal = [], [], x.new_zeros(len(x))
        mean, covariance = self.initial_mean.expand(len(x), -1), self.initial_covariance
        for observed in x.unbind(1):
            residual = observed - mean @ self.loadings.T
            cross = covariance @ self.loadings.T
            root = torch.linalg.cholesky(self.loadings @ cross + self.observation)
            white = torch.linalg.solve_triangular(root, residual.T, upper=False).T
            log_volume = root.diagonal().log().sum()
            log_marginal = log_marginal - 0.5 * (white.square() + LOG_2_PI).sum(1) - log_volume
            gain = torch.linalg.solve_triangular(root, cross.T, upper=False)  # G = L⁻¹CP, the Kalman gain GᵀL⁻¹
            mean, covariance = mean + white @ gain, _symmetric(covariance - gain.T @ gain)
            means.append(mean)
            covariances.append(covariance)
            mean = mean @ self.dynamics.T
            covariance = _symmetric(self.dynamics @ covariance @ self.dynamics.T + self.process)
        return means, covariances, log_marginal

    def smooth(self, x: Tensor) -> Smoothed:
        """E[z_t|x_1…x_T] and covariances (Rauch, Tung and Striebel) for x (B, T, D_x)."""
        means, covariances, _ = self._filter(x.double())
        lagged: list[Tensor] = []
        for t in range(len(means) - 2, -1, -1):
            predicted = _symmetric(self.dynamics @ covariances[t] @ self.dynamics.T + self.process)
            gain = torch.linalg.solve(predicted, self.dynamics @ covariances[t]).T
            lagged.append(covariances[t + 1] @ gain.T)
            means[t] = means[t] + (means[t + 1] - means[t] @ self.dynamics.T) @ gain.T
            covariances[t] = _symmetric(covariances[t] + gain @ (covariances[t + 1] - predicted) @ gain.T)
        return Smoothed(torch.stack(means, 1), torch.stack(covariances), torch.stack(lagged[::-1]))

    def improved(self, x: Tensor) -> KalmanModel:
        """One iteration of EM on series x (B, T, D_x); the likelihood does not fall."""
        x, given = x.double(), self.smooth(x)
        mean, count = given.mean, len(x)
        second = torch.einsum("bti,btj->tij", mean, mean) + count * given.covariance  # Σ_b E[z_t z_tᵀ]
        cross = torch.einsum("bti,btj->ij", mean[:, 1:], mean[:, :-1]) + count * given.lagged.sum(0)
        before, after, everywhere = second[:-1].sum(0), second[1:].sum(0), second.sum(0)
        dynamics = torch.linalg.solve(before, cross.T).T
        process = (after - dynamics @ cross.T) / (count * (x.shape[1] - 1))
        seen = torch.einsum("bti,btj->ij", x, mean)
        loadings = torch.linalg.solve(everywhere, seen.T).T
        noise = (x.square().sum((0, 1)) - (loadings * seen).sum(1)) / (count * x.shape[1])
        first = mean[:, 0].mean(0)
        return KalmanModel(
            dynamics,
            loadings,
            _symmetric(process),
            noise.diag(),
            first,
            _symmetric(second[0] / count - torch.outer(first, first)),
        )


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.T)


def random_start(x: Tensor, latent_dim: int, generator: torch.Generator) -> KalmanModel:
    """Parameters to begin EM with for x (B, T, D_x): slow dynamics, random loadings of the data's size."""
    eye = torch.eye(latent_dim, dtype=torch.float64)
    variance = x.double().flatten(0, 1).var(0)
    draw = torch.randn(x.shape[2], latent_dim, generator=generator, dtype=torch.float64)
    turn = torch.randn(latent_dim, latent_dim, generator=generator, dtype=torch.float64)
    dynamics = 0.9 * torch.linalg.matrix_exp(0.3 * (turn - turn.T))
    loadings = draw * (variance / (2 * latent_dim)).sqrt()[:, None]
    return KalmanModel(dynamics, loadings, 0.2 * eye, (variance / 2).diag(), torch.zeros_like(eye[0]), eye)


@torch.no_grad()
def maximum_likelihood(x: Tensor, starts: Sequence[KalmanModel]) -> KalmanModel:
    """The most likely of the models that EM finds from each start, for series x (B, T, D_x).

    Warns where the iterations did not converge.
    """
    x = x.double().cpu()
    found: list[tuple[float, KalmanModel]] = []
    for model in starts:
        value = -float("inf")
        for iteration in range(MAX_ITERATIONS + 1):
            if iteration % CHECK_EVERY == 0:
                value, last = float(model.log_marginal(x).mean()) / x.shape[1], value
                if value - last < TOLERANCE:
                    break
            model = model.improved(x)
        else:
            warnings.warn(
                f"EM did not converge in {MAX_ITERATIONS} iterations; its log-likelihood may be too low.", stacklevel=2
            )
        found.append((value, model))
    return max(found, key=lambda pair: pair[0])[1]
