"""A non-linear state space model whose transition and emission are small networks.

    z_1 ~ N(f(z_0), diag q²),   z_t ~ N(f(z_{t−1}), diag q²),   x_t ~ N(g(z_t), r² I),   z_0 learnt

f has tanh hidden units and a tanh output, so that latents stay in a box; g has tanh hidden units and is linear at the
end. Source: the published code (kevin-w-li/al-ws, ``DeepImage``).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import DiagonalGaussian
from lightning_alws.penalties import Penalty
from lightning_alws.state_space import StateSpaceModel
from lightning_alws.windows import Windows


class NeuralDynamics(StateSpaceModel):
    """The generative part.

    Args:
        event_shape: (T, D_x), from the data module.
        latent_dim: D_z.
        hidden: width of each network's hidden layer.
        process_scale: q at first, in each dimension.
        observation_scale: r at first.

    Raises:
        UserError: the observations are no series, or a number makes no sense.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | None,
        latent_dim: int = 2,
        hidden: int = 20,
        process_scale: float = 0.3,
        observation_scale: float = 1.0,
    ) -> None:
        super().__init__(event_shape)
        check_at_least("model", latent_dim=(latent_dim, 1), hidden=(hidden, 1))
        for name, value in (("process_scale", process_scale), ("observation_scale", observation_scale)):
            if not value > 0:
                raise UserError(f"model.{name} is {value}; give a positive number, such as 0.3.")
        self.start = nn.Parameter(torch.zeros(latent_dim))
        self.step = nn.Sequential(nn.Linear(latent_dim, hidden), nn.Tanh(), nn.Linear(hidden, latent_dim), nn.Tanh())
        self.picture = nn.Sequential(nn.Linear(latent_dim, hidden), nn.Tanh(), nn.Linear(hidden, self.observed_dim))
        self.log_process_scale = nn.Parameter(torch.full((latent_dim,), float(process_scale)).log())
        self.log_observation_scale = nn.Parameter(torch.tensor(float(observation_scale)).log())

    def initial(self) -> DiagonalGaussian:
        return self.transition(self.start[None])

    def transition(self, z_previous: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.step(z_previous), self.log_process_scale)

    def emission(self, z: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.picture(z), self.log_observation_scale)

    def watched(self) -> dict[str, Tensor]:
        processes = {f"process_scale_{d}": scale for d, scale in enumerate(self.log_process_scale.exp())}
        return {"observation_scale": self.log_observation_scale.exp(), **processes}


class NeuralDynamicsModel(AmortisedLearning):
    """A non-linear state space model trained by amortised learning.

    Args:
        latent_dim: dimension of the latent state.
        hidden: width of each network's hidden layer.
        learning: how it is trained.
        window: past and future steps to regress each time step's term on (:mod:`lightning_alws.windows`), where
            ``learning.sleep_samples`` counts time steps; null, as published, for the whole series at once.
        window_decay: by which a window's observation is multiplied for each step that it is away.
        innovations: weight of a smoother's innovations among what is regressed on; 0 for none.
        refined_by: training step by which these two are in full force.
        process_scale: of the latents' noise at first.
        observation_scale: of the observations' noise at first.
        event_shape: (T, D_x); comes from the data module.
    """

    def __init__(
        self,
        latent_dim: int = 2,
        hidden: int = 20,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        window: tuple[int, int] | None = None,
        window_decay: float = 1.0,
        innovations: float = 0.0,
        refined_by: int = 0,
        process_scale: float = 0.3,
        observation_scale: float = 1.0,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        model = NeuralDynamics(event_shape, latent_dim, hidden, process_scale, observation_scale)
        if window is None and (window_decay != 1 or innovations):
            raise UserError(
                f"model.window_decay is {window_decay} and model.innovations {innovations}, but both are of windows, "
                "and model.window is null; give a window, such as [3, 2]."
            )
        super().__init__(
            model if window is None else Windows(model, window[0], window[1], window_decay, innovations, refined_by),
            learning,
        )
        self.save_hyperparameters()

    def penalty(self, penalties: list[Penalty]) -> Tensor | float:
        """−log p(θ)/n, with n the number of windows where there are any: the objective is then that of one window."""
        steps = self.generative.model.steps if isinstance(self.generative, Windows) else 1
        return super().penalty(penalties) / steps

    def observe(self, batch: Any) -> Tensor:
        """Series (B, T, D_x), cut into their windows where there are any."""
        return self.generative.cut(batch) if isinstance(self.generative, Windows) else batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if isinstance(self.generative, Windows):
            self.generative.at_step(self.global_step)
        super().on_train_batch_start(batch, batch_idx)

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        super().validation_step(self.observe(x), batch_idx)

    @property
    def dynamics(self) -> NeuralDynamics:
        """The state space model to evaluate, with averaged weights where there are any."""
        model = self.evaluation_model
        return cast(NeuralDynamics, model.model if isinstance(model, Windows) else model)

    def posterior_mean(self, x: Tensor) -> Tensor:
        """E[z_t|x], or given the window around t, for series x (B, T, D_x), shape (B, T, D_z)."""
        model = self.evaluation_model  # whose sleep samples x is compared with
        posterior = self.amortised_posterior(model.cut(x) if isinstance(model, Windows) else x)
        return posterior.expectation(cast(Tensor, posterior.sleep.z)).view(*x.shape[:2], -1)
