"""What a learnt population does when it runs freely, beside the counts it was learnt from."""

from __future__ import annotations

import copy
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.distributions import MultivariateNormal

from callbacks.figure import ExperimentFigure
from lightning_alws.errors import check_at_least
from lightning_alws.metrics.blowfly import log_likelihood_by_lag
from lightning_alws.models.blowfly import BlowflyModel, BlowflySimulator
from lightning_alws.population import NAMES, STATISTICS, period, population_statistics
from lightning_alws.posterior import project_to_simplex

CENTRAL = 0.95
SHOWN = 4  # simulations in the figure


class PopulationFigure(ExperimentFigure):
    """Simulates from the model as it stands, and logs ``val/`` and ``test/``:

    * ``inside``: how many of the ten statistics of the data lie in the central 95 % of the simulations', each also
      by itself as its rank from 0 to 1, ``rank_STATISTIC``; ``period`` of the simulations (the median) and
      ``period_data``, in sampling intervals;
    * ``synthetic_log_likelihood``: log density of the data's statistics under a Gaussian of the simulations' mean and
      covariance, a stand-in for log p_θ(s(x)), which has no form (Wood, Nature 466, 2010);
    * every parameter by its name, and where the data know it ``largest_error``, the largest |learnt/truth − 1|;
    * ``lag``, the most probable under p(τ), and ``lag_probability``; under p(τ|x) by the regression's weights,
      projected to probabilities, ``lag_amortised`` and ``lag_amortised_probability`` (given what the kernel sees of x);
      ``lag_truth`` where the data know it;
    * in the test also ``log_likelihood`` of the whole series, and the lag given all of x, ``lag_exact`` and
      ``lag_exact_probability``, both exact.

    The whole of p(τ) and of both posteriors is in ``results.json`` under ``provenance``.

    Args:
        simulations: how many series to simulate.

    Raises:
        UserError: there are less than 40 simulations.
    """

    model_class = BlowflyModel

    def __init__(self, simulations: int = 200) -> None:
        check_at_least("PopulationFigure", simulations=(simulations, 40))
        self.simulations = simulations
        self.lags: dict[str, Tensor] = {}

    def measure(self, module: BlowflyModel, data: Any, split: str) -> dict[str, float]:
        """All numbers of the first series."""
        x = data.observations(split)[:1]
        model = exact_model(module)
        simulated = self.simulate(model)
        ranks = self.ranks(simulated, x)
        tail = (1 - CENTRAL) / 2
        numbers = {
            "inside": float(((ranks >= tail) & (ranks <= 1 - tail)).sum()),
            **{f"rank_{name}": float(rank) for name, rank in zip(STATISTICS, ranks, strict=True)},
            "synthetic_log_likelihood": self.synthetic_log_likelihood(simulated, x),
            "period": float(period(simulated).median()),
            "period_data": float(period(x.double())),
            **{name: float(model.value(name)) for name in NAMES},
        }
        if truth := getattr(data, "truth", None):
            numbers["largest_error"] = max(abs(numbers[name] / getattr(truth, name) - 1) for name in NAMES)
            numbers["lag_truth"] = data.lag
        self.lags = {"": model.log_lags.exp(), "_amortised": self.amortised_lags(module, x).double()}
        if split == "test":
            by_lag = log_likelihood_by_lag(model, x[0].double()) + model.log_lags
            numbers["log_likelihood"] = float(by_lag.logsumexp(0))
            self.lags["_exact"] = by_lag.softmax(0)
        for name, probabilities in self.lags.items():
            numbers[f"lag{name}"] = 1 + int(probabilities.argmax())
            numbers[f"lag{name}_probability"] = float(probabilities.max())
        return numbers

    def simulate(self, model: BlowflySimulator) -> Tensor:
        """Series that the model makes by itself, float64 (n, T)."""
        return model.simulate(self.simulations)[1]

    @staticmethod
    def ranks(simulated: Tensor, x: Tensor) -> Tensor:
        """The share of simulations below the data in each statistic, ties counting half, shape (10,)."""
        theirs, ours = population_statistics(simulated), population_statistics(x.to(simulated))
        return ((theirs < ours).double() + 0.5 * (theirs == ours).double()).mean(0)

    @staticmethod
    def synthetic_log_likelihood(simulated: Tensor, x: Tensor) -> float:
        """log N(s(x); m, S) with the mean and covariance of the simulations' statistics."""
        theirs, ours = population_statistics(simulated), population_statistics(x.to(simulated))[0]
        spread = theirs.std(0).clamp_min(1e-9)
        # In standard deviations, with a little added to the diagonal: counts of peaks may be all the same.
        covariance = (theirs / spread).T.cov() + 1e-3 * torch.eye(len(ours), dtype=ours.dtype, device=ours.device)
        gaussian = MultivariateNormal(torch.zeros_like(ours), covariance)
        return float(gaussian.log_prob((ours - theirs.mean(0)) / spread) - spread.log().sum())

    @staticmethod
    def amortised_lags(module: BlowflyModel, x: Tensor) -> Tensor:
        """Σ_n W_n 1[τ_n = k] for x (1, T), with the weights projected to probabilities, shape (lags,)."""
        posterior = module.amortised_posterior(x)
        model: Any = module.evaluation_model
        return project_to_simplex(posterior.weights)[:, 0] @ model.statistics(posterior.sleep.z)

    def provenance(self) -> dict[str, Any]:
        """How many simulations, and the probabilities of the lags from 1 on."""
        lags = {f"lag{name}": [round(float(p), 4) for p in values] for name, values in self.lags.items()}
        return {"population": {"simulations": self.simulations, **lags}}

    def draw(self, module: BlowflyModel, data: Any, split: str) -> Figure:
        """Above the data and some simulations; below the statistics and the lags."""
        x = data.observations(split)[:1]
        simulated = self.simulate(exact_model(module))
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        grid = figure.add_gridspec(3, 2, width_ratios=[3, 2], height_ratios=[1, 1, 1.3])
        self._draw_series(figure.add_subplot(grid[0, :]), x[0], "the data", "black")
        axis = figure.add_subplot(grid[1, :])
        for row, series in enumerate(simulated[:SHOWN]):
            axis.plot(series.cpu().numpy(), lw=1, label=f"simulation {row + 1}")
        axis.set(ylabel="counts", xlabel="sampling intervals", title="the model running freely")
        self._draw_ranks(figure.add_subplot(grid[2, 0]), simulated, x)
        self._draw_lags(figure.add_subplot(grid[2, 1]))
        return figure

    @staticmethod
    def _draw_series(axis: Any, series: Tensor, title: str, colour: str) -> None:
        axis.plot(series.cpu().numpy(), color=colour, lw=1.3)
        axis.set(ylabel="counts", title=title)

    def _draw_ranks(self, axis: Any, simulated: Tensor, x: Tensor) -> None:
        """Each statistic of the data in standard deviations of the simulations', over their central 95 %."""
        theirs, ours = population_statistics(simulated), population_statistics(x.to(simulated))[0]
        centre, spread = theirs.median(0).values, theirs.std(0).clamp_min(1e-9)
        tail = torch.tensor([(1 - CENTRAL) / 2, (1 + CENTRAL) / 2], dtype=theirs.dtype, device=theirs.device)
        low, high = ((theirs.quantile(tail, dim=0) - centre) / spread).cpu()
        places = range(len(STATISTICS))
        axis.vlines(places, low, high, lw=6, color="tab:blue", alpha=0.4, label="simulations, central 95 %")
        axis.plot(places, ((ours - centre) / spread).cpu(), "k_", ms=12, mew=2, label="data")
        axis.set_xticks(places, [name.replace("_", " ") for name in STATISTICS], rotation=40, ha="right")
        axis.set(ylabel="standard deviations", title="summary statistics", ylim=(None, 1.7 * float(high.max())))
        axis.legend(fontsize="small")

    def _draw_lags(self, axis: Any) -> None:
        labels = {"": "learnt p(τ)", "_amortised": "given x, amortised", "_exact": "given x, exact"}
        for place, (name, label) in enumerate(labels.items()):
            if name in self.lags:
                values = self.lags[name].tolist()
                places = [lag + 0.28 * (place - 1) for lag in range(1, len(values) + 1)]
                axis.bar(places, values, width=0.28, label=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set(xlabel="lag τ, sampling intervals", title="lag", ylim=(0, 1))
        axis.legend(fontsize="small")


def exact_model(module: BlowflyModel) -> BlowflySimulator:
    """A copy of the model to evaluate, in float64."""
    model = copy.deepcopy(module.evaluation_model).double()
    assert isinstance(model, BlowflySimulator)
    return model
