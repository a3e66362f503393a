"""A noisy oscillator seen as a bump that moves to and fro on a row of pixels, or a user's own series.

    z_0 = (0.8, 0),   z_t ~ N(ρ(‖z‖) A z_{t−1}, 0.1² I),   x_t ~ N(bump(z_t), 0.05² I)

A turns by π/6, ρ(‖z‖) = sigmoid(4(‖z‖ − 0.3))/‖z‖ draws to a limit cycle of radius 0.924, and the bump on 20 pixels g
from −1.5 to 1.5 is exp(−½ (z_{t,1} − g)²/0.3²). Source: the published code (kevin-w-li/al-ws, ``LinearImage``).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from datamodules.series import ObservedSeries, named_columns, read_columns, standard_scale
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.noise import generator

PIXELS = 20


class BumpOscillator:
    """The true generator, with its published numbers."""

    start = (0.8, 0.0)
    turn = math.pi / 6
    process_scale, observation_scale = 0.1, 0.05
    width, extent = 0.3, 1.5

    def next_state(self, z: Tensor) -> Tensor:
        """E[z_t|z_{t−1}] for states z (..., 2), of the same shape."""
        cosine, sine = math.cos(self.turn), math.sin(self.turn)
        turned = torch.stack([cosine * z[..., 0] - sine * z[..., 1], sine * z[..., 0] + cosine * z[..., 1]], dim=-1)
        radius = z.norm(dim=-1, keepdim=True)
        return torch.sigmoid(4 * (radius - 0.3)) * turned / radius.clamp_min(torch.finfo(z.dtype).tiny)

    def draw_next(self, z: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """z_t given z_{t−1}, of the same shape."""
        return self.next_state(z) + self.process_scale * torch.randn(z.shape, generator=draws)

    def picture(self, z: Tensor) -> Tensor:
        """E[x_t|z_t] for states z (..., 2), shape (..., 20)."""
        pixels = torch.linspace(-self.extent, self.extent, PIXELS, dtype=z.dtype, device=z.device)
        return torch.exp(-0.5 * ((z[..., :1] - pixels) / self.width).square())

    def draw_states(self, count: int, steps: int, draws: torch.Generator | None = None) -> Tensor:
        """Paths z_1 … z_steps, (count, steps, 2)."""
        z, states = torch.tensor(self.start).expand(count, 2), []
        for _ in range(steps):
            z = self.draw_next(z, draws)
            states.append(z)
        return torch.stack(states, dim=1)


class Sinusoid(ObservedSeries):
    """A few series (steps, 20) of the oscillator, the same for training, validation and test; or a user's.

    A user's CSV file names its columns in the first line and has one point in time a line, at equal intervals; its rows
    are cut into ``sequences`` series of ``steps`` each, one after the other. Units are of no account: each column is
    brought to mean 0 and standard deviation 1.

    Args:
        sequences: number of series.
        steps: T, points in time of each.
        path: a CSV file, instead of series drawn from the seed.
        columns: the names of its columns that are x.
        seed: of the data and their order.

    Raises:
        UserError: a number makes no sense, or the file cannot be used.
    """

    def __init__(
        self,
        sequences: int = 3,
        steps: int = 30,
        path: str | None = None,
        columns: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.save_hyperparameters(logger=False)
        check_at_least("data", sequences=(sequences, 1), steps=(steps, 2))
        self.sequences, self.steps = sequences, steps
        self.path, self.columns = path, named_columns(path, columns)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.steps, len(self.columns) if self.path else PIXELS)

    @property
    def truth(self) -> BumpOscillator | None:
        """The true generator; None for a user's series."""
        return None if self.path else BumpOscillator()

    def states(self) -> Tensor:
        """The z that made the series, (sequences, steps, 2); drawn anew, and the same each time."""
        return BumpOscillator().draw_states(self.sequences, self.steps, generator(self.seed, "states"))

    def series(self) -> Tensor:
        """The oscillator's pictures with noise, or the user's rows, (sequences, steps, D)."""
        if self.path:
            return self._cut(Path(self.path))
        true = BumpOscillator()
        x = true.picture(self.states())
        return x + true.observation_scale * torch.randn(x.shape, generator=generator(self.seed, "noise"))

    def _cut(self, path: Path) -> Tensor:
        rows = torch.stack([*read_columns(path, self.columns).values()], dim=1)
        if len(rows) != self.sequences * self.steps:
            raise UserError(
                f"data.path is {path}, which has {len(rows)} rows, but data.sequences {self.sequences} of data.steps "
                f"{self.steps} need {self.sequences * self.steps}; change these, or the file."
            )
        mean, spread = standard_scale(rows, path, self.columns)
        return ((rows - mean) / spread).float().view(self.sequences, self.steps, -1)
