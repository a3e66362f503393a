"""State space models: latents that follow a Markov chain in time, each seen through an observation of its own.

    p_θ(z, x) = p_θ(z_1) Π_{t=2..T} p_θ(z_t|z_{t−1}) Π_{t=1..T} p_θ(x_t|z_t)

A path is drawn step by step and without gradient; the density of a path that is there needs no loop: all its steps are
rows of one transition.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel
from lightning_alws.likelihoods import Likelihood


class StateSpaceModel(LatentVariableModel):
    """A Markov chain z (N, T, D_z) with observations x (N, T, D_x); the same transition at every step.

    A model gives the three conditional laws as likelihoods, which can be sampled and have a density, such as
    ``DiagonalGaussian``; latents and observations of one time step depend on each other row by row.

    Args:
        event_shape: (T, D_x), from the data module.

    Attributes:
        steps: T.
        observed_dim: D_x.

    Raises:
        UserError: the observations are no series.
    """

    prior_is_learnt = True

    def __init__(self, event_shape: tuple[int, ...] | None) -> None:
        super().__init__()
        if event_shape is None:
            raise UserError(
                "the data module has no attribute 'event_shape', which a state space model takes from it; use one of "
                "series, such as LinearDynamicsData or Sinusoid, or define event_shape (T, D) in yours."
            )
        if len(event_shape) != 2 or event_shape[0] < 2:
            raise UserError(
                f"the data have observations of shape {tuple(event_shape)}, but a state space model takes series "
                "(T, D) of T ≥ 2 points in time and D columns; give one column its own dimension, D = 1."
            )
        self.steps, self.observed_dim = event_shape

    @abstractmethod
    def initial(self) -> Likelihood:
        """p_θ(z_1), a likelihood of one row with events (D_z,)."""

    @abstractmethod
    def transition(self, z_previous: Tensor) -> Likelihood:
        """p_θ(z_t|z_{t−1}) for M rows z_{t−1} (M, D_z), of whatever t, with events (D_z,)."""

    @abstractmethod
    def emission(self, z: Tensor) -> Likelihood:
        """p_θ(x|z) for any number T' of steps z (N, T', D_z), with events (T', D_x), step by step."""

    @torch.no_grad()
    def sample_prior(self, count: int) -> Tensor:
        """Paths z (count, T, D_z)."""
        return self.sample_path(count, self.steps)

    @torch.no_grad()
    def sample_path(self, count: int, steps: int) -> Tensor:
        """z ~ p_θ(z) for any number of steps, free-running, shape (count, steps, D_z), without gradient."""
        states = [self._initial(count).sample()]
        while len(states) < steps:
            states.append(self.transition(states[-1]).sample())
        return torch.stack(states, dim=1)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p_θ(z) of paths (N, T, D_z), shape (N,)."""
        return self.log_prior_terms(z).sum(1)

    def log_prior_terms(self, z: Tensor) -> Tensor:
        """log p_θ(z_1) and the log p_θ(z_t|z_{t−1}) of paths z (N, T, D_z), shape (N, T), in one pass."""
        first = self._initial(len(z)).log_prob(z[:, 0])
        following = self.transition(z[:, :-1].flatten(0, 1)).log_prob(z[:, 1:].flatten(0, 1))
        return torch.cat([first[:, None], following.view(len(z), -1)], dim=1)

    def likelihood(self, z: Tensor) -> Likelihood:
        """The emission, whose events are whole series (T, D_x)."""
        return self.emission(z)

    def _initial(self, count: int) -> Likelihood:
        """p_θ(z_1) with the same law in each of ``count`` rows."""
        return self.initial().map(lambda row: row.expand(count, *row.shape[1:]), lambda shared: shared)
