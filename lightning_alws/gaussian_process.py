"""A Gaussian process on a regular grid, and what is exact about it: marginal likelihood, its maximum, the posterior.

    z ~ N(0, K),  K_tu = s² (exp(−(t − u)² / (2ℓ²)) + jitter·1[t = u]),  x|z ~ N(z, σ²I),  so that  x ~ N(0, K + σ²I)

Time is counted in sampling intervals: t = 0, 1, …, T − 1, and ℓ is a number of them.
Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, chapters 2 and 5
(http://gaussianprocess.org/gpml).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.likelihoods import LOG_2_PI

JITTER = 1e-4  # relative to s²: a smooth process on a fine grid is singular to working precision


def gram(points: int, lengthscale: Tensor, scale: Tensor) -> Tensor:
    """K (points, points) of a squared-exponential process; differentiable in ℓ and s."""
    times = torch.arange(points, device=scale.device, dtype=scale.dtype)
    correlation = (-0.5 * ((times[:, None] - times) / lengthscale).square()).exp()
    jitter = JITTER * torch.eye(points, device=scale.device, dtype=scale.dtype)
    return scale.square() * (correlation + jitter)


def log_density(factor: Tensor, x: Tensor) -> Tensor:
    """log N(x; 0, LLᵀ) for the Cholesky factor L (T, T) and x (B, T), shape (B,)."""
    whitened = torch.linalg.solve_triangular(factor, x.T, upper=False)
    return -0.5 * (whitened.square().sum(0) + len(factor) * LOG_2_PI) - factor.diagonal().log().sum()


@dataclass(frozen=True)
class Hyperparameters:
    """ℓ (in sampling intervals), s and σ (in units of x), all positive."""

    lengthscale: float
    scale: float
    noise: float

    def check(self, section: str) -> None:
        """Raise a UserError that names the first which is not positive; ``section`` as on the command line."""
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"{section}.{name} is {value}; give a positive number.")

    @property
    def logarithms(self) -> Tensor:
        """(log ℓ, log s, log σ) in float64, shape (3,)."""
        return torch.tensor([self.lengthscale, self.scale, self.noise], dtype=torch.float64).log()

    def covariance(self, points: int) -> tuple[Tensor, Tensor]:
        """K of the latents and K + σ²I of the observations, float64 (points, points)."""
        lengthscale, scale, noise = self.logarithms.exp()
        latent = gram(points, lengthscale, scale)
        return latent, latent + noise.square() * torch.eye(points, dtype=torch.float64)

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x) in nats for x (B, T), float64 (B,)."""
        return log_marginal(self.logarithms, x.double().cpu())

    def posterior_mean(self, x: Tensor) -> Tensor:
        """E[z|x] = K (K + σ²I)⁻¹ x for x (B, T), float64 (B, T)."""
        latent, observed = self.covariance(x.shape[1])
        return torch.linalg.solve(observed, x.double().cpu().T).T @ latent

    def maximised(self, x: Tensor, max_iterations: int = 200) -> Self:
        """The hyperparameters of greatest marginal likelihood of x (B, T), by L-BFGS from these on.

        Raises:
            UserError: it did not converge, as where the data hold no noise or no signal.
        """
        count, x = len(x), x.double().cpu()
        # The mean over the series depends on Σ x xᵀ alone: no more rows than points are needed.
        triangle = torch.linalg.qr(x, mode="r").R
        x = triangle * (len(triangle) / count) ** 0.5
        logarithms = self.logarithms.requires_grad_(True)
        optimiser = torch.optim.LBFGS(
            [logarithms], max_iter=max_iterations, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            """The loss, its gradient left in the logarithms: what L-BFGS asks for at each point of its search."""
            optimiser.zero_grad()
            loss = -log_marginal(logarithms, x).mean()
            loss.backward()
            return loss

        try:
            with torch.enable_grad():
                optimiser.step(closure)  # type: ignore[no-untyped-call]
                slope = torch.autograd.grad(log_marginal(logarithms, x).mean(), logarithms)[0].abs().max()
        except torch.linalg.LinAlgError:  # a hyperparameter has run to 0 or infinity
            slope = torch.tensor(torch.inf)
        if not slope < 1e-4:
            raise UserError(
                f"the marginal likelihood of {count} series has no maximum that could be found (slope "
                f"{float(slope):.1e}); give series that vary smoothly and are observed with noise."
            )
        return type(self)(*logarithms.detach().exp().tolist())


def log_marginal(logarithms: Tensor, x: Tensor) -> Tensor:
    """log p(x) for (log ℓ, log s, log σ) of shape (3,), differentiable in them, and x (B, T) of one dtype, (B,)."""
    lengthscale, scale, noise = logarithms.exp()
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    covariance = gram(x.shape[1], lengthscale, scale) + noise.square() * eye
    return log_density(torch.linalg.cholesky(covariance), x)
