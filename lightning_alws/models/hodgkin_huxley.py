"""Stochastic Hodgkin-Huxley: one noisy voltage trace x_t ~ N(V_t, s_x²), t = 1 … T, of a membrane with latent noise.

The latent is the voltage's path V_1 … V_T, drawn without gradient; its density, in which the gates are recomputed with
gradient, is the learnt prior (:mod:`lightning_alws.voltage_density`). Ten constants are learnt as logarithms, and so is
where the path begins. Source: the published code (kevin-w-li/al-ws), its example on Hodgkin-Huxley.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel
from lightning_alws.hodgkin_huxley import NAMES, NEGATIVE, Constants, Membrane, State, draw_path
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import Gaussian, Likelihood
from lightning_alws.voltage_density import log_density

INITIAL = Membrane(2.0, 0.2, -60.0, 40.0, 40.0, 3.0, -80.0, -50.0, 1.0, 30.0)  # as published
VOLTAGE_UNIT = 100.0  # mV: V_0 is stored in this unit, so that Adam moves it at the rate of the others
RUNAWAY = 1000.0  # mV: nothing but a forward-Euler step that is unstable comes so far
REDRAWS = 3


class HodgkinHuxley(LatentVariableModel):
    """p_θ(V) p_θ(x|V) on T time steps of a given input current.

    A path *runs away* where the membrane's forward-Euler step is unstable: V far below threshold makes Δt(α + β) > 2,
    and gates and voltage then grow without bound. Such a path is drawn anew, up to three times, and the share of them
    counted (``runaways``); what still runs away is NaN, so that the step is skipped and the reason named.

    Args:
        event_shape: (T,), from the data module.
        input_current: I_0 … I_{T−1} in µA/cm², from the data module; I_t acts on the step from V_t to V_{t+1}.
        time_step: Δt in ms, from the data module.
        initial: the constants at first.
        state: where the path begins, at first.

    Raises:
        UserError: the observations are no series with an input current, a constant makes no sense, or the voltage
            runs away from the beginning, even without noise.
    """

    prior_is_learnt = True
    current: Tensor
    runaways: Tensor
    log_observation_noise: Tensor

    def __init__(
        self,
        event_shape: tuple[int, ...] | None,
        input_current: Sequence[float] | None,
        time_step: float | None,
        initial: Membrane = INITIAL,
        state: State = State(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        if event_shape is None or input_current is None or time_step is None:
            raise UserError(
                "the data module has no attributes 'event_shape', 'input_current' and 'time_step', which a "
                "Hodgkin-Huxley model takes from it; use VoltageTrace, or define them in yours."
            )
        if len(event_shape) != 1 or event_shape[0] < 1 or len(input_current) != event_shape[0]:
            raise UserError(
                f"the data have observations of shape {tuple(event_shape)} and an input current of "
                f"{len(input_current)} steps, but a Hodgkin-Huxley model takes a voltage and a current at each of T "
                "time steps; give both the same length."
            )
        initial.check("model.initial")
        state.check("model.state")
        self.time_step = time_step
        self.register_buffer("current", torch.tensor(input_current, dtype=torch.float32), persistent=False)
        self.register_buffer("runaways", torch.zeros(()), persistent=False)
        for name, value in vars(initial).items():
            self.register_parameter(f"log_{name}", nn.Parameter(torch.tensor(abs(value)).log()))
        self.initial_voltage = nn.Parameter(torch.tensor(state.voltage / VOLTAGE_UNIT))
        self.initial_gates = nn.Parameter(torch.tensor(state.gates))
        self._check_stable()

    @property
    def values(self) -> dict[str, Tensor]:
        """The ten constants by name, with their signs, each a 0-dimensional tensor."""
        sizes = {name: getattr(self, f"log_{name}").exp() for name in NAMES}
        return {name: -size if name in NEGATIVE else size for name, size in sizes.items()}

    @property
    def membrane(self) -> Membrane:
        """The ten constants as they stand."""
        return Membrane(**{name: float(value.detach()) for name, value in self.values.items()})

    @property
    def constants(self) -> Constants:
        """As the equations take them, differentiable."""
        return Constants.of(self.values, self.time_step)

    @torch.no_grad()
    def sample_prior(self, count: int) -> Tensor:
        """Voltages (count, T) in mV; NaN in a path that ran away each time it was drawn."""
        path = self._draw(count)
        away = self._runs_away(path)
        self.runaways.copy_(away.float().mean())
        for _ in range(REDRAWS):
            if not away.any():
                break
            warnings.warn(
                "some simulated voltages ran away beyond 1 V, because the constants make a time step unstable; they "
                "are drawn anew (parameters/runaways is their share).",
                stacklevel=2,
            )
            path[:, away] = self._draw(int(away.sum()))
            away = self._runs_away(path)
        path[:, away] = torch.nan
        return path.T  # of memory with time first, as the density takes it

    @torch.no_grad()
    def _check_stable(self) -> None:
        """Raise a UserError where no learning could begin, whatever the noise."""
        path = draw_path(
            self.constants, self.start, self.initial_gates, self.current, torch.zeros(len(self.current), 1)
        )
        if self._runs_away(path).any():
            at = self.time_step * (1 + int((~(path[:, 0].abs() < RUNAWAY)).nonzero()[0]))
            raise UserError(
                f"the voltage at model.initial runs away beyond 1 V at {at:.4g} ms, with time steps of "
                f"{self.time_step:.4g} ms and a current of up to {float(self.current.abs().max()):.4g} µA/cm²; see "
                "that the data are in these units and their steps at most 0.05 ms, or change model.initial."
            )

    def _draw(self, count: int) -> Tensor:
        noise = torch.randn(len(self.current), count, device=self.current.device, dtype=self.current.dtype)
        return draw_path(self.constants, self.start, self.initial_gates, self.current, noise)

    @staticmethod
    def _runs_away(path: Tensor) -> Tensor:
        """Which paths (T, N) leave the range or are NaN, shape (N,)."""
        return ~(path.abs().amax(0) < RUNAWAY)

    @property
    def start(self) -> Tensor:
        """V_0 in mV, a scalar."""
        return VOLTAGE_UNIT * self.initial_voltage

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(V_1 … V_T), shape (N,), the gates recomputed with gradient."""
        return log_density(self.constants, self.start, self.initial_gates, self.current, z.T)

    def likelihood(self, z: Tensor) -> Likelihood:
        """N(V_t, s_x²) at each of T time steps."""
        return Gaussian(z, self.log_observation_noise)

    def watched(self) -> dict[str, Tensor]:
        """The constants, where the path begins, and the share of paths that ran away."""
        gates = dict(zip(("m", "n", "h"), self.initial_gates.unbind(), strict=True))
        return {**self.values, "initial_voltage": self.start, **gates, "runaways": self.runaways}


class HodgkinHuxleyModel(AmortisedLearning):
    """A Hodgkin-Huxley membrane, its constants learnt from one voltage trace by amortised learning.

    Args:
        learning: how it is trained.
        initial: the constants at first.
        state: where the path begins, at first.
        event_shape: (T,); comes from the data module.
        input_current: µA/cm² at each time step; comes from the data module.
        time_step: ms; comes from the data module.
    """

    def __init__(
        self,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        initial: Membrane = INITIAL,
        state: State = State(),  # noqa: B008 (frozen)
        event_shape: tuple[int, ...] | None = None,
        input_current: list[float] | None = None,
        time_step: float | None = None,
    ) -> None:
        super().__init__(HodgkinHuxley(event_shape, input_current, time_step, initial, state), learning)
        self.save_hyperparameters()
