"""Amortised learning of a state space model from windows: each time step's term is regressed on what is seen around it.

    Ĵ_t(x*) ≈ E[log p_θ(z_t|z_{t−1}) + log p_θ(x_t|z_t) | x*_{t−past}, …, x*_{t+future}]

The log joint of a path is a sum over time, and what the observations say of a term they say mostly nearby. Every step
of every path is then a sample of one regression, in the window's few dimensions instead of the whole series' many:
N sleep samples are N/T paths. Pooled over time, windows of sleep and of data have the same law where the model is
right, and the mean of E[∇_θ term | window] over them is E[∇_θ term] = 0 whatever the window: a window that is too short
costs efficiency, as a composite likelihood does (Varin, Reid, Firth, "An overview of composite likelihood methods",
Statistica Sinica 21, 2011), but moves no fixed point. The method is ours, not among the published.

The same holds of whatever else a step is regressed on. Observations further away may weigh less: the fewer dimensions
count, the finer is the regression. And log p_θ(z_t|z_{t−1}) hangs on a small difference of two states, which a kernel
on observations hardly resolves; the innovations of a smoother that runs on the model as it stands lay it open. They use
θ, but nothing is differentiated through what is regressed on. Both have to come by and by: as long as the model has no
dynamics, the observations around a step are all that tells of its velocity, and the smoother knows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.generative import Direct, GenerativeModel, PlugIn, Sleep
from lightning_alws.likelihoods import TensorMap
from lightning_alws.smoother import innovations
from lightning_alws.state_space import StateSpaceModel


@dataclass(frozen=True)
class CentralPlugIn(PlugIn):
    """log p_θ(z_n, ·) of the observation at one place in a window; the rest of the window is only regressed on.

    Attributes:
        x: windows (N, W, D_x), of whatever lies beside the place.
        likelihood: p_θ(x_t|z_t) with events (1, D_x).
        log_prior: log p_θ(z_t|z_{t−1}), shape (N,).
        place: of x_t in the window.
    """

    place: int = 0

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        """Σ_n W_nb log p_θ(z_n, x_b at its place), shape (B,), for windows x (B, W, D_x)."""
        return super().expectation(weights, self._central(x))

    @property
    def log_joint(self) -> Tensor:
        """log p_θ(z_t|z_{t−1}) + log p_θ(x_t|z_t), shape (N,)."""
        log_prob = self.likelihood.log_prob(self._central(self.x))
        return log_prob if self.log_prior is None else log_prob + self.log_prior

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        """The same with each tensor that has one row a sample, or one row for all, mapped."""
        log_prior = None if self.log_prior is None else rows(self.log_prior)
        return type(self)(rows(self.x), self.likelihood.map(rows, shared), log_prior, self.place)

    def _central(self, windows: Tensor) -> Tensor:
        return windows[:, self.place : self.place + 1]


class Windows(GenerativeModel):
    """The time steps of a state space model's paths, one sleep sample each, with the window of observations around.

    Args:
        model: the state space model.
        past: steps before the one in question that the window holds.
        future: steps after it.
        decay: by which an observation is multiplied for each step that it is away.
        innovations: by what innovations of an extended Kalman smoother (:mod:`lightning_alws.smoother`) are multiplied
            that the window then holds as well; with 0 it does not.
        refined_by: the training step by which both are in full force, which rises evenly until then; 0 for at once.

    Raises:
        UserError: a number makes no sense, or the window reaches beyond both ends of every series.
    """

    force: Tensor

    def __init__(
        self,
        model: StateSpaceModel,
        past: int,
        future: int,
        decay: float = 1.0,
        innovations: float = 0.0,
        refined_by: int = 0,
    ) -> None:
        super().__init__()
        check_at_least("window", past=(past, 0), future=(future, 0))
        check_at_least("model", refined_by=(refined_by, 0))
        if not 0 < decay <= 1:
            raise UserError(f"model.window_decay is {decay}; give a number above 0 and at most 1, such as 0.5.")
        if not innovations >= 0:
            raise UserError(f"model.innovations is {innovations}; give 0 for none, or a weight such as 0.5.")
        for name, reach in (("past", past), ("future", future)):
            if reach >= model.steps:
                raise UserError(
                    f"window.{name} is {reach}, but series have {model.steps} points in time; give at most "
                    f"{model.steps - 1}."
                )
        self.model, self.past, self.future = model, past, future
        self.decay, self.innovations, self.refined_by = decay, innovations, refined_by
        self.register_buffer("force", torch.tensor(1.0 if refined_by == 0 else 0.0))

    def at_step(self, step: int) -> None:
        """Set the force for a training step; of its number alone, so that a resumed run goes on as it was."""
        if self.refined_by:
            self.force.fill_(min(1.0, step / self.refined_by))

    def sleep(self, count: int, direct: bool = False) -> Sleep:
        """Time steps of as many whole paths as are needed: states (count, D_z), windows (count, W, D_x)."""
        steps = self.model.steps
        z = self.model.sample_prior(-(-count // steps)).detach()
        states = z.flatten(0, 1)[:, None]
        likelihood = self.model.emission(states)
        windows = self.cut(likelihood.sample().detach().view(len(z), steps, -1))
        log_prior = self.model.log_prior_terms(z).flatten()
        joint = CentralPlugIn(windows, likelihood, log_prior, self.past)[:count]
        return Sleep(states[:count, 0], joint.x, Direct(joint.log_joint) if direct else joint)

    def cut(self, x: Tensor) -> Tensor:
        """The windows of series x (N, T, D), step by step, (N·T, past + 1 + future, D); 0 beyond either end.

        Innovations are further rows, as many as D numbers each take, filled up with 0.
        """
        away = torch.arange(-self.past, self.future + 1, device=x.device).abs()
        padded = torch.nn.functional.pad(x, (0, 0, self.past, self.future))
        fading = self.decay ** (self.force.to(x) * away)
        windows = padded.unfold(1, len(away), 1).transpose(2, 3).flatten(0, 1) * fading[:, None]
        if not self.innovations:
            return windows
        surprise = self.innovations * self.force.to(x) * innovations(self.model, x).flatten(0, 1)
        rows = torch.nn.functional.pad(surprise, (0, -surprise.shape[1] % x.shape[2]))
        return torch.cat([windows, rows.view(len(windows), -1, x.shape[2])], dim=1)

    def watched(self) -> dict[str, Tensor]:
        """What the state space model has."""
        return self.model.watched()
