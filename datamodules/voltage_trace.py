"""One voltage trace with the current that drove it: simulated from known constants, or a user's recording."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from datamodules.series import ObservedSeries, check_even, read_columns
from lightning_alws.errors import UserError
from lightning_alws.hodgkin_huxley import Constants, Membrane, State, draw_path
from lightning_alws.noise import generator

COLUMNS = ("time", "voltage", "current")
TIME_STEP = 0.05  # ms, of the simulated trace
STEPS = ((100, 0.0), (800, 10.0), (100, 0.0))  # how many, and the current's mean in µA/cm², as published
CURRENT_NOISE = 2.0  # µA/cm², in each time step
LEAST_STEP, LEAST_VOLTAGE = 1e-3, 1.0  # ms and mV; below, a file is in seconds and volts
MOST_VOLTAGE = 1000.0  # mV; above, it is in µV, or holds no membrane's voltages


class VoltageTrace(ObservedSeries):
    """x_t ~ N(V_t, s_x²) of a Hodgkin-Huxley membrane under a known input current; one trace, all splits the same.

    Without a file it is simulated in float64 at the constants of ``truth``, from the state that a
    :class:`~lightning_alws.hodgkin_huxley.State` has by default, over 1 000 steps of 0.05 ms: a step of
    10 µA/cm² in the middle 800, and noise of 2 µA/cm² on the current throughout. All is drawn from the seed.

    Args:
        path: a CSV file instead, whose first line names the columns ``time`` (ms, evenly spaced), ``voltage`` (mV)
            and ``current`` (µA/cm², positive inwards). A row's current acts on the step that ends in its voltage.
        truth: the constants of the simulated trace.
        seed: of the simulated trace.

    Attributes:
        truth: the constants, None for a file.
        input_current: µA/cm² at each time step, known to the model.
        time_step: ms.

    Raises:
        UserError: a constant makes no sense, or the file is broken: no such column, a NaN, uneven time steps, fewer
            than two rows, other units.
    """

    def __init__(
        self,
        path: str | None = None,
        truth: Membrane = Membrane(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.save_hyperparameters(logger=False)
        truth.check("data.truth")
        self.truth = truth if path is None else None
        if path is None:
            self.time_step = TIME_STEP
            current, self.path, self._trace = simulate(truth, seed)
        else:
            self.name = f"{self.name} {Path(path).stem}"
            self.time_step, current, self._trace = read_trace(Path(path))
        self.input_current: list[float] = current.tolist()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (len(self._trace),)

    def series(self) -> Tensor:
        """The trace in mV, float32 (1, T)."""
        return self._trace.float()[None]


def simulate(truth: Membrane, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input current, voltage without observation noise and with it, each float64 (T,)."""

    def white(stream: str) -> Tensor:
        count = sum(steps for steps, _ in STEPS)
        return torch.randn(count, generator=generator(seed, "voltage trace", stream), dtype=torch.float64)

    mean = torch.cat([torch.full((steps,), level, dtype=torch.float64) for steps, level in STEPS])
    current = mean + CURRENT_NOISE * white("current")
    constants = Constants.of_membrane(truth, TIME_STEP)
    start = State()
    voltage, gates = torch.tensor(start.voltage).double(), torch.tensor(start.gates).double()
    path = draw_path(constants, voltage, gates, current, white("voltage")[:, None].clone())[:, 0]
    if not torch.isfinite(path).all():
        first = int((~torch.isfinite(path)).nonzero()[0])
        raise UserError(
            f"the voltage simulated at data.truth runs away at {first * TIME_STEP:.2f} ms; give constants at which a "
            f"time step of {TIME_STEP} ms is stable."
        )
    return current, path, path + truth.observation_noise * white("observation")


def read_trace(path: Path) -> tuple[float, Tensor, Tensor]:
    """Time step in ms, current and voltage, the latter float64 (T,), of a user's file."""
    columns = read_columns(path, COLUMNS)
    step = check_even(path, columns["time"], "ms")
    if step < LEAST_STEP:
        raise UserError(f"data.path is {path}, whose time steps are {step:.3g} ms, as if in seconds; give ms.")
    voltage = columns["voltage"]
    if float(voltage.abs().max()) < LEAST_VOLTAGE:
        raise UserError(
            f"data.path is {path}, whose voltages all are between -{LEAST_VOLTAGE:g} and {LEAST_VOLTAGE:g} mV, as if "
            "in volts; give mV."
        )
    far = voltage.abs() >= MOST_VOLTAGE
    if far.any():
        row = int(far.nonzero()[0])
        raise UserError(
            f"data.path is {path}, whose voltage in row {row + 1} is {float(voltage[row]):.6g} mV, as if in µV; give "
            f"mV, between -{MOST_VOLTAGE:g} and {MOST_VOLTAGE:g}."
        )
    return step, columns["current"], voltage
