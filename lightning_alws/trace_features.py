"""What a voltage trace shows of the membrane behind it, in some hundred numbers: times, phase plane, roughness.

A kernel on the trace itself compares voltages time by time, and a spike half a millisecond late is a wholly different
trace. How fast the voltage rises and falls at each voltage does not depend on when it spikes; amortised learning may
take any such function of the observations, for nothing is differentiated through it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError

SMOOTHING = 4  # steps whose mean is one point of the phase plane
LAGS = (1, 2, 4, 8, 16, 32, 64)
WIDTHS = (1, 2, 4, 8, 16)
SMALL = 4.0  # mV: a bend beyond it is a spike's and counts no more than one of this size


class TraceFeatures(nn.Module):
    """Voltages (N, T) in mV → (N, d): three kinds of number, none with a gradient.

    1. *Times*: means over windows of ``window`` steps.
    2. *Phase plane*: of the smoothed trace, around each of ``bins`` voltages, how often it is there, and its mean rise
       and its mean fall.
    3. *Roughness*: of the changes over 1 … 64 steps, the log of the mean square; of the bends between neighbouring
       means of 1 … 16 steps, a mean in which spikes count little, and the mean log. Noise of the observation is rough
       at the shortest of them only, noise of the voltage at all.

    Args:
        event_shape: (T,), T at least 3 windows.
        window: time steps in a window.
        bins: voltages.
        lowest: the first of them, mV.
        highest: the last, mV.

    Raises:
        UserError: a number makes no sense, or the trace is too short.
    """

    centres: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...],
        window: int = 20,
        bins: int = 16,
        lowest: float = -90.0,
        highest: float = 60.0,
    ) -> None:
        super().__init__()
        if window < 1 or bins < 2 or not lowest < highest:
            raise UserError(
                f"TraceFeatures has window={window}, bins={bins}, lowest={lowest} and highest={highest}; give a window "
                "of at least 1, at least 2 bins, and a highest voltage above the lowest."
            )
        shortest = max(3 * window, 3 * SMOOTHING)
        if len(event_shape) != 1 or event_shape[0] < shortest:
            raise UserError(
                f"the data have observations of shape {tuple(event_shape)}, but TraceFeatures takes a voltage at each "
                f"of T ≥ {shortest} time steps, shape (T,); lower its window, or give a longer trace."
            )
        self.window = window
        self.register_buffer("centres", torch.linspace(lowest, highest, bins), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """All three kinds side by side, (N, d)."""
        return torch.cat([means(x, self.window), self.phase_plane(x), self.roughness(x)], dim=1)

    def phase_plane(self, x: Tensor) -> Tensor:
        """Share of the time, mean rise and mean fall (mV over two smoothed steps) at each voltage, (N, 3 · bins)."""
        smooth = means(x, SMOOTHING)
        change = smooth[:, 2:] - smooth[:, :-2]
        width = self.centres[1] - self.centres[0]
        near = torch.exp(-0.5 * ((smooth[:, 1:-1, None] - self.centres) / width).square())
        courses = torch.stack([torch.ones_like(change), change.clamp_min(0), change.clamp_max(0)], dim=1)
        return (courses @ near / change.shape[1]).flatten(1)

    @staticmethod
    def roughness(x: Tensor) -> Tensor:
        """Logs of mean square changes, and means of the sizes of bends, one number for each lag and width."""
        length = x.shape[1]
        numbers = [(x[:, lag:] - x[:, :-lag]).square().mean(1).log() for lag in LAGS if lag < length]
        for width in WIDTHS:
            if 3 * width > length:
                break
            smooth = means(x, width)
            bend = (smooth[:, 2:] - 2 * smooth[:, 1:-1] + smooth[:, :-2]) * width**0.5
            numbers += [(bend.abs() / SMALL).tanh().mean(1), (bend.square() + 0.01).log().mean(1)]
        return torch.stack(numbers, dim=1)


def means(x: Tensor, width: int) -> Tensor:
    """Means of (N, T) over windows of the width, shape (N, T // width); what is left at the end is left out."""
    whole = x.shape[1] // width * width
    return x[:, :whole].unflatten(1, (-1, width)).mean(2)
