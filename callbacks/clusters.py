"""Whether a mixture found the clusters: how many components survive, and whether samples can be told from data."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.figure import ExperimentFigure
from lightning_alws.errors import check_at_least
from lightning_alws.metrics.likelihood import monte_carlo_log_likelihood
from lightning_alws.metrics.mmd import median_bandwidth, null_distribution, squared_mmd
from lightning_alws.models.warped_mixture import WarpedMixture, WarpedMixtureModel
from lightning_alws.noise import generator, global_seed

COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee", "#ee8866", "#777777", "#000000", "#bbcc33"]
QUANTILE = 0.99


class Clusters(ExperimentFigure):
    """Data, samples coloured by their component, and the components' weights, for a :class:`WarpedMixtureModel`.

    Logs, under ``val/`` and ``test/``: ``components``, those of weight above ``survival``; ``least_weight`` and
    ``greatest_weight`` of these; ``log_likelihood`` in nats an observation, from prior samples; ``squared_mmd`` of
    samples against the split's data (unbiased, Gaussian kernel, bandwidth the median distance). In the test also
    ``squared_mmd_limit``, the 99 % point of data against data: random halves of as many fresh data where the data
    module can draw some (``fresh``), otherwise of samples and data together (a permutation test).

    Args:
        count: samples, and data at most, that are compared.
        survival: weight above which a component counts as surviving.
        repeats: random halves for the 99 % point.
        prior_samples: for the log-likelihood in the test; a tenth of it in a validation.

    Raises:
        UserError: a number makes no sense.
    """

    model_class = WarpedMixtureModel

    def __init__(
        self, count: int = 2000, survival: float = 0.02, repeats: int = 500, prior_samples: int = 20_000
    ) -> None:
        check_at_least(
            "Clusters",
            count=(count, 2),
            survival=(survival, 0),
            repeats=(repeats, 1),
            prior_samples=(prior_samples, 10),
        )
        self.count, self.survival, self.repeats, self.prior_samples = count, survival, repeats, prior_samples

    def provenance(self) -> dict[str, Any]:
        """How many were compared, and what surviving means."""
        return {
            "clusters": {
                "samples_compared": self.count,
                "survival_weight": self.survival,
                "null_repeats": self.repeats,
                "null_quantile": QUANTILE,
                "prior_samples": self.prior_samples,
            }
        }

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """Survivors, their weights, and the discrepancy between samples and data."""
        model: WarpedMixture = module.evaluation_model
        weights = model.prior.probabilities
        surviving = weights[weights > self.survival]
        real = data.observations(split)[: self.count].to(weights.dtype)
        prior_samples = self.prior_samples if split == "test" else self.prior_samples // 10
        numbers = {
            "components": len(surviving),
            "least_weight": float(surviving.min()) if len(surviving) else 0.0,
            "greatest_weight": float(weights.max()),
            "log_likelihood": float(monte_carlo_log_likelihood(model, real, prior_samples).log_likelihood.mean()),
        }
        samples = model.likelihood(model.sample_prior(len(real))).sample()
        bandwidth = median_bandwidth(real, samples)
        numbers["squared_mmd"] = squared_mmd(samples, real, bandwidth)
        if split == "test":
            null = null_distribution(
                self._pool(data, samples, real), len(real), bandwidth, self.repeats, generator(global_seed(), "mmd")
            )
            numbers["squared_mmd_limit"] = float(null.quantile(QUANTILE))
        return numbers

    @staticmethod
    def _pool(data: Any, samples: Tensor, real: Tensor) -> Tensor:
        """What random halves are taken of."""
        if hasattr(data, "fresh"):
            return data.fresh(2 * len(real), "mmd").to(real)
        return torch.cat([samples, real])

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Data, samples, weights; only the first two dimensions of the observations are shown."""
        model: WarpedMixture = module.evaluation_model
        weights = model.prior.probabilities.cpu()
        real = data.observations(split)[: self.count].cpu()
        z = model.sample_prior(len(real))
        samples, component = model.likelihood(z).sample().cpu(), model.prior.unpack(z)[0].cpu()
        # By falling weight, so that a run's survivors come first and keep their colours.
        rank = weights.argsort(descending=True).argsort()
        colours = [COLOURS[int(place) % len(COLOURS)] for place in rank]
        figure = Figure(figsize=(12, 3.9), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        left.scatter(real[:, 0], real[:, -1], s=3, color="#555555", linewidths=0)
        left.set_title(f"{len(real)} data")
        middle.scatter(samples[:, 0], samples[:, -1], s=3, color=[colours[int(k)] for k in component], linewidths=0)
        middle.set_title("samples, by component")
        limit = 1.15 * float(real.abs().max())
        for axes in (left, middle):
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        order = weights.argsort(descending=True)
        right.bar(range(len(order)), weights[order].tolist(), color=[colours[int(k)] for k in order])
        right.axhline(self.survival, color="black", linewidth=0.8, linestyle=":")
        right.set(xlabel="component, by weight", title=f"weights; {int((weights > self.survival).sum())} survive")
        right.set_xticks(range(len(order)), [str(int(k)) for k in order])
        return figure
