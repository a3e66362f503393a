"""What a Hodgkin-Huxley membrane did not foresee of a voltage trace it follows, beside what the trace itself shows.

The noise of the voltage hides in a trace behind that of the observation, ten times larger, and behind the response to
the current, which is known. From the innovations of the membrane as it stands the response is taken away, and what they
have in common over time is the voltage's noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.hodgkin_huxley import innovations
from lightning_alws.kernels import ModelFeatures
from lightning_alws.models.hodgkin_huxley import HodgkinHuxley
from lightning_alws.trace_features import TraceFeatures, means

LAGS = (1, 2, 4, 8, 16, 32)
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
SMALL = 0.1  # mV²: below it, a mean's square is as good as 0


class MembraneFeatures(ModelFeatures):
    """Voltages (N, T) in mV → (N, d): :class:`~lightning_alws.trace_features.TraceFeatures`, and of the innovations
    e_t of the membrane in training (:func:`~lightning_alws.hodgkin_huxley.innovations`) the log of the mean square,
    correlations over 1 … 32 steps, and mean logs of squared means over 1 … 64 steps.

    Args:
        event_shape: (T,).
        gain: of the membrane that follows a trace; s_V/s_x at the truth is 0.1, at the published start 0.03.

    Raises:
        UserError: the gain is not within [0, 1], the trace is too short, or the model is no membrane.
    """

    def __init__(self, event_shape: tuple[int, ...], gain: float = 0.05) -> None:
        super().__init__()
        if not 0 <= gain <= 1:
            raise UserError(f"MembraneFeatures has gain={gain}; give a share between 0 and 1, such as 0.05.")
        self.trace = TraceFeatures(event_shape)
        self.gain = gain

    def attach(self, model: nn.Module) -> None:
        if not isinstance(model, HodgkinHuxley):
            raise UserError(
                f"MembraneFeatures follows traces with a Hodgkin-Huxley membrane, but the model is a "
                f"{type(model).__name__}; take TraceFeatures."
            )
        super().attach(model)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Trace and innovations side by side, (N, d)."""
        membrane: HodgkinHuxley = self.model  # type: ignore[assignment]
        surprises = innovations(
            membrane.constants,
            membrane.start,
            membrane.initial_gates,
            membrane.current.to(x),
            x.T.contiguous(),
            self.gain,
        )
        # A membrane that runs away says nothing of a trace, but the regression needs a number.
        return torch.cat([self.trace(x), self.whiteness(surprises.T).nan_to_num(0.0, 0.0, 0.0)], dim=1)

    @staticmethod
    def whiteness(surprises: Tensor) -> Tensor:
        """Of innovations (N, T): log mean square, correlations, mean logs of squared means; (N, 14), less if short."""
        square = surprises.square().mean(1)
        numbers = [square.log()]
        numbers += [(surprises[:, lag:] * surprises[:, :-lag]).mean(1) / square for lag in LAGS]
        widths = [width for width in WIDTHS if 2 * width <= surprises.shape[1]]
        numbers += [(width * means(surprises, width).square() + SMALL).log().mean(1) for width in widths]
        return torch.stack(numbers, dim=1)
