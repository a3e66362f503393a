"""Learnt constants of a membrane beside the truth and over the steps, and simulated voltages over the observed one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from scipy.signal import find_peaks
from torch import Tensor

from callbacks.history import FigureWithHistory
from lightning_alws.hodgkin_huxley import NAMES
from lightning_alws.metrics.kalman_voltage import TraceLikelihood
from lightning_alws.models.hodgkin_huxley import HodgkinHuxleyModel

EVERY_N_STEPS = 5
SIMULATIONS = 200
TRACES = 5  # simulated ones drawn
CLIMB = 20  # Newton steps to the likelihood's maximum
NEAR = 0.1  # relative error to which a constant counts as found
PEAK, APART = 0.0, 2.0  # a spike is a peak above 0 mV, 2 ms from any higher one
UNITS = {
    "capacitance": "µF/cm²",
    **{f"{channel}_conductance": "mS/cm²" for channel in ("leak", "sodium", "potassium")},
    **{f"{channel}_reversal": "mV" for channel in ("leak", "sodium", "potassium")},
    **dict.fromkeys(("threshold", "voltage_noise", "observation_noise"), "mV"),
}


class VoltageFigure(FigureWithHistory):
    """Logs ``val/`` and ``test/``: each constant by name and, where the data know the truth, its relative error
    ``NAME_error`` and how many of the ten are ``within_10_percent``; ``spikes_observed``, of the trace;
    ``spikes_simulated`` and ``spikes_simulated_sd``, mean and spread over 200 simulations; ``spike_time_error``, the
    mean distance in ms between an observed spike and the simulated one of the same rank, over simulations with the
    same number of spikes, and ``spike_time_sd``, the spread of those simulated times about their own mean.

    After the test also ``log_likelihood``, ``log_likelihood_truth`` and ``log_likelihood_ml`` of the trace, the last at
    the maximum, by the extended Kalman filter; and for each constant that misses the truth by more than 10 %,
    ``NAME_drop`` and ``NAME_drop_truth``: how many nats the profile of the likelihood falls below its maximum at the
    learnt value and at the truth. Where both are below 1.92, the trace's 95 % interval holds both.

    Draws each constant against the step, and simulated traces over the observed one.

    Args:
        profile: whether to find the likelihood's maximum and profiles after the test, which takes half a minute.
    """

    model_class = HodgkinHuxleyModel

    def __init__(self, profile: bool = True) -> None:
        super().__init__()
        self.profile = profile

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remember where training begins."""
        self.remember(0, **vars(pl_module.evaluation_model.membrane))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Remember where it stands."""
        if trainer.global_step % EVERY_N_STEPS == 0:
            self.remember(trainer.global_step, **vars(pl_module.evaluation_model.membrane))

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """The constants and their errors, and spikes of simulations beside those of the trace."""
        model = module.evaluation_model
        numbers = dict(vars(model.membrane))
        if data.truth is not None:
            errors = {name: abs(value / getattr(data.truth, name) - 1) for name, value in numbers.items()}
            numbers["within_10_percent"] = sum(error <= NEAR for error in errors.values())
            numbers.update({f"{name}_error": error for name, error in errors.items()})
        observed = spike_times(data.observations(split)[0], data.time_step)
        simulated = [spike_times(path, data.time_step) for path in model.sample_prior(SIMULATIONS)]
        counts = np.array([len(times) for times in simulated])
        numbers.update(
            spikes_observed=len(observed), spikes_simulated=counts.mean(), spikes_simulated_sd=counts.std(ddof=1)
        )
        alike = [times for times in simulated if len(times) == len(observed)]
        if alike and len(observed):
            numbers["spike_time_error"] = float(np.abs(np.stack(alike) - observed).mean())
            numbers["spike_time_sd"] = float(np.stack(alike).std(0).mean())
        if split == "test" and self.profile and data.truth is not None:
            numbers.update(self._likelihoods(model, data))
        return numbers

    @staticmethod
    def _likelihoods(model: Any, data: Any) -> dict[str, float]:
        likelihood = TraceLikelihood(
            torch.tensor(data.input_current), data.observations("test")[0], data.time_step, model.initial_gates
        )
        learnt, truth = vars(model.membrane), vars(data.truth)
        voltage = float(model.watched()["initial_voltage"].detach())
        points = torch.stack([likelihood.point(learnt, voltage), likelihood.point(truth, voltage)])
        values = likelihood(points)
        free = torch.zeros(1, points.shape[1], dtype=torch.bool)
        highest, best = likelihood.climb(points[values.argmax()][None], free, CLIMB)
        missed = {
            name: [learnt[name], truth[name]] for name in NAMES if not abs(learnt[name] / truth[name] - 1) <= NEAR
        }
        drops = likelihood.profile_drops(best[0], missed, CLIMB)
        return {
            "log_likelihood": float(values[0]),
            "log_likelihood_truth": float(values[1]),
            "log_likelihood_ml": float(highest),
            **{f"{name}_drop": drop[0] for name, drop in drops.items()},
            **{f"{name}_drop_truth": drop[1] for name, drop in drops.items()},
        }

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Above, the constants' courses; below, the traces and the spikes."""
        figure = Figure(figsize=(16, 9), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(3, 2))
        above, below = parts
        for axis, name in zip(above.subplots(2, 5).flat, NAMES, strict=True):
            axis.plot(self.steps, self.history.get(name, []))
            if data.truth is not None:
                truth = getattr(data.truth, name)
                axis.axhline(truth, color="black", lw=1)
                axis.axhspan((1 - NEAR) * truth, (1 + NEAR) * truth, color="black", alpha=0.12, lw=0)
            axis.set_title(f"{name.replace('_', ' ')} ({UNITS[name]})", fontsize="medium")
            axis.set_xlabel("step")
        if data.truth is not None:
            above.suptitle("learnt (blue), truth (black) ± 10 %", fontsize="medium")
        self._draw_traces(below, module.evaluation_model, data, split)
        return figure

    @staticmethod
    def _draw_traces(figure: Any, model: Any, data: Any, split: str) -> None:
        traces, spikes = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        observed = data.observations(split)[0]
        times = data.time_step * np.arange(1, len(observed) + 1)
        simulated = model.likelihood(model.sample_prior(TRACES)).sample()
        for row, trace in enumerate(simulated):
            label = f"{TRACES} simulated" if row == 0 else None
            traces.plot(times, trace.cpu().numpy(), color="tab:blue", lw=0.8, alpha=0.6, label=label)
            at = spike_times(trace, data.time_step)
            spikes.plot(at, np.full(len(at), row), "|", color="tab:blue", ms=8)
        traces.plot(times, observed.cpu().numpy(), color="black", lw=1, label="observed")
        at = spike_times(observed, data.time_step)
        spikes.plot(at, np.full(len(at), TRACES), "|", color="black", ms=8)
        traces.set_ylabel("voltage (mV)")
        traces.legend(loc="upper right")
        spikes.set(xlabel="time (ms)", yticks=[], ylabel="spikes", ylim=(-1, TRACES + 1))


def spike_times(trace: Tensor, time_step: float) -> np.ndarray:
    """Times in ms of the spikes of one voltage trace (T,), the first point being at one time step."""
    voltage = torch.nan_to_num(trace, nan=-100.0).cpu().numpy()
    peaks, _ = find_peaks(voltage, height=PEAK, distance=max(1, round(APART / time_step)))
    return (peaks + 1) * time_step
