"""What a learnt oscillator does when left to itself, beside the true one; data, latents and generated series."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.history import FigureWithHistory
from lightning_alws.metrics.oscillation import Oscillation, mean_period, measure
from lightning_alws.metrics.particle_filter import log_likelihood
from lightning_alws.models.neural_dynamics import NeuralDynamicsModel
from lightning_alws.noise import seeded

# Free-running paths and their steps; many in the test, since the diffusion, a difference of variances, is the noisiest.
SIZES = {"val": (2000, 150), "test": (8000, 300)}
FORGET = 50  # first steps left out, until the beginning is forgotten
PARTICLES = {"val": 2000, "test": 20_000}
LINES = 4  # columns drawn as lines; more, as an image
BRIGHTNESS = (-0.1, 1.1)  # of the oscillator's pictures
PANELS = 3
NAMES = ("period", "diffusion", "spread")


class Oscillator(FigureWithHistory):
    """Logs ``val/`` and ``test/``: ``observation_scale`` r; of free-running paths the ``period`` in steps, the phase
    ``diffusion`` in radians per √step and the one-step ``spread`` in units of x (:mod:`metrics.oscillation`);
    ``log_likelihood`` of the data in nats per time step, by a particle filter. Where the data are the oscillator's
    own, also ``period_truth``, ``diffusion_ratio`` and ``spread_ratio``, learnt over true, and ``period_data``, the
    mean period of the few cycles in the very series that are learnt from.

    Draws series of the data and of the model, states, and these numbers over the steps.
    """

    model_class = NeuralDynamicsModel

    def __init__(self) -> None:
        super().__init__()
        self._truth: Oscillation | None = None

    def truth(self, data: Any) -> Oscillation | None:
        """The true generator's numbers, by as many simulations as the test's; None for a user's data."""
        true = getattr(data, "truth", None)
        if true is not None and self._truth is None:
            count, steps = SIZES["test"]
            with seeded(torch.device("cpu"), type(self).__name__, "truth"):  # the same in every run
                paths = true.draw_states(count, steps + FORGET)[:, FORGET:]
                self._truth = measure(paths, true.draw_next, true.picture)
        return self._truth

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """The numbers of free-running paths, and the likelihood of the data."""
        model, x = module.dynamics, data.observations(split)
        count, steps = SIZES[split]
        paths = model.sample_path(count, steps + FORGET)[:, FORGET:]
        ours = measure(paths, lambda z: model.transition(z).sample(), lambda z: model.emission(z[:, None]).mean[:, 0])
        numbers = {
            "observation_scale": float(model.log_observation_scale.exp()),
            **{name: getattr(ours, name) for name in NAMES},
            "log_likelihood": float(log_likelihood(model, x, PARTICLES[split]).mean()) / x.shape[1],
        }
        if truth := self.truth(data):
            numbers["period_truth"] = truth.period
            numbers["period_data"] = mean_period(data.states(), torch.zeros(2))
            numbers["diffusion_ratio"] = ours.diffusion / truth.diffusion
            numbers["spread_ratio"] = ours.spread / truth.spread
        if split == "val":
            self.remember(module.global_step, **numbers)
        return numbers

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Above data, amid generated series, below states and the numbers' course."""
        figure = Figure(figsize=(12, 8.5), layout="constrained")
        axes = figure.subplots(3, PANELS)
        x, model = data.observations(split), module.dynamics
        z = model.sample_path(PANELS, x.shape[1])
        generated = model.emission(z).sample()
        true = getattr(data, "truth", None)
        limits = BRIGHTNESS if true else (float(x.min()), float(x.max()))
        for k in range(PANELS):
            if k < len(x):
                _draw_series(axes[0, k], x[k], f"data, series {k}", limits)
            else:
                axes[0, k].set_axis_off()
            _draw_series(axes[1, k], generated[k], f"generated, series {k}", limits)
        self._draw_states(axes[2, 0], model.sample_path(60, 100)[:, FORGET:], module.posterior_mean(x), "learnt")
        if true:
            self._draw_states(axes[2, 1], true.draw_states(60, 100)[:, FORGET:], data.states(), "true")
        else:
            axes[2, 1].set_axis_off()
        self._draw_course(axes[2, 2], self.truth(data), getattr(true, "observation_scale", 1.0))
        return figure

    @staticmethod
    def _draw_states(axis: Any, free: Tensor, followed: Tensor, kind: str) -> None:
        free, followed = free.cpu(), followed.cpu()
        axis.plot(*free[..., :2].flatten(0, 1).T.numpy(), ".", ms=1, color="0.7")
        for path in followed[:PANELS]:
            axis.plot(*path[..., :2].T.numpy(), ".-", lw=0.8, ms=3)
        label = "E[z|x] of the data" if kind == "learnt" else "those of the data"
        axis.set(title=f"{kind} states: free-running (grey),\n{label} (colours)", aspect="equal")

    def _draw_course(self, axis: Any, truth: Oscillation | None, noise: float) -> None:
        references = {} if truth is None else {"observation_scale": noise, **vars(truth)}
        for name in ("observation_scale", *NAMES):
            values = torch.tensor(self.history.get(name, [])) / references.get(name, 1.0)
            axis.plot(self.steps, values.numpy(), label=name.replace("_", " "))
        if truth is not None:
            axis.axhspan(0.75, 1.25, color="0.5", alpha=0.15)
        axis.set(title="over the truth" if truth else "course", xlabel="step", yscale="log")
        axis.legend(fontsize="small")


def _draw_series(axis: Any, series: Tensor, title: str, limits: tuple[float, float]) -> None:
    if series.shape[1] <= LINES:
        axis.plot(series.cpu().numpy(), lw=0.8)
    else:
        axis.imshow(
            series.T.cpu().numpy(), cmap="viridis", vmin=limits[0], vmax=limits[1], aspect="auto", origin="lower"
        )
    axis.set(title=title, xlabel="time step")
