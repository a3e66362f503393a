"""A linear-Gaussian state space model, learnt without its closed form, which is then what it is held against.

    z_1 ~ N(m, diag s²),   z_t ~ N(A z_{t−1}, diag q²),   x_t ~ N(C z_t, diag r²)

Diagonal q² and s² are no restriction: any two covariances become diagonal in one choice of the latents' coordinates,
which the likelihood does not fix. Its exact value is the Kalman filter's (:mod:`lightning_alws.metrics.kalman`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_alws.errors import check_at_least
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import DiagonalGaussian
from lightning_alws.metrics.kalman import KalmanModel
from lightning_alws.state_space import StateSpaceModel


class LinearDynamics(StateSpaceModel):
    """The generative part.

    Args:
        event_shape: (T, D_x), from the data module.
        latent_dim: D_z.

    Attributes:
        dynamics: A (D_z, D_z), at first 0.8 times a small random rotation: slow, and stable.
        loadings: C (D_x, D_z), at first independent normals that give each (Cz)_d a variance of about 1.
        initial_mean: m (D_z,), at first 0.
        log_initial_scale, log_process_scale, log_observation_scale: log s, log q (D_z,) and log r (D_x,), at first
            0, log ½ and 0.

    Raises:
        UserError: the observations are no series, or the number of latents makes no sense.
    """

    def __init__(self, event_shape: tuple[int, ...] | None, latent_dim: int = 2) -> None:
        super().__init__(event_shape)
        check_at_least("model", latent_dim=(latent_dim, 1))
        turn = 0.3 * torch.randn(latent_dim, latent_dim)
        self.dynamics = nn.Parameter(0.8 * torch.linalg.matrix_exp(turn - turn.T))
        self.loadings = nn.Parameter(torch.randn(self.observed_dim, latent_dim) / latent_dim**0.5)
        self.initial_mean = nn.Parameter(torch.zeros(latent_dim))
        self.log_initial_scale = nn.Parameter(torch.zeros(latent_dim))
        self.log_process_scale = nn.Parameter(torch.full((latent_dim,), 0.5).log())
        self.log_observation_scale = nn.Parameter(torch.zeros(self.observed_dim))

    def initial(self) -> DiagonalGaussian:
        """N(m, diag s²)."""
        return DiagonalGaussian(self.initial_mean[None], self.log_initial_scale)

    def transition(self, z_previous: Tensor) -> DiagonalGaussian:
        """N(A z_{t−1}, diag q²)."""
        return DiagonalGaussian(z_previous @ self.dynamics.T, self.log_process_scale)

    def emission(self, z: Tensor) -> DiagonalGaussian:
        """N(C z_t, diag r²) at each time step."""
        return DiagonalGaussian(z @ self.loadings.T, self.log_observation_scale)

    @property
    def exact(self) -> KalmanModel:
        """The same model in closed form, in float64; differentiable in the parameters."""

        def covariance(log_scale: Tensor) -> Tensor:
            return (2 * log_scale.double()).exp().diag()

        return KalmanModel(
            self.dynamics.double(),
            self.loadings.double(),
            covariance(self.log_process_scale),
            covariance(self.log_observation_scale),
            self.initial_mean.double(),
            covariance(self.log_initial_scale),
        )

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p_θ(x) in nats, exact, for x (B, T, D_x), shape (B,), in float64."""
        return self.exact.log_marginal(x)

    def watched(self) -> dict[str, Tensor]:
        """The largest size of A's eigenvalues, below 1 where the dynamics are stable, and the range of r."""
        scale = self.log_observation_scale.exp()
        return {
            "spectral_radius": torch.linalg.eigvals(self.dynamics.detach()).abs().max(),
            "observation_scale_least": scale.min(),
            "observation_scale_greatest": scale.max(),
        }


class LinearDynamicsModel(AmortisedLearning):
    """A linear-Gaussian state space model trained by amortised learning.

    Args:
        latent_dim: dimension of the latent state.
        learning: how it is trained.
        event_shape: (T, D_x); comes from the data module.
    """

    def __init__(
        self,
        latent_dim: int = 2,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(LinearDynamics(event_shape, latent_dim), learning)
        self.save_hyperparameters()
