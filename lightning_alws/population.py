"""Populations counted at regular times: the parameters of their dynamics, and summary statistics of the counts.

The statistics are those of wittawatj/k2abc for Nicholson's blowflies, chosen there for approximate Bayesian
computation; fluctuations, level and cycles are each in some of them, the phase of the cycles in none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError

LEAST = 1e-6  # counts; a population that dies out keeps a logarithm
STATISTICS = (
    *(f"log_level_{quarter}" for quarter in range(1, 5)),
    *(f"change_{quarter}" for quarter in range(1, 5)),
    "peaks",
    "high_peaks",
)
THRESHOLDS = (0.5, 1.5)  # of a peak, in standard deviations of the series


@dataclass(frozen=True)
class Population:
    """The dynamics' parameters, all positive; by default at the centres of the priors in wittawatj/k2abc.

    Args:
        births: P, offspring per adult and sampling interval at low density.
        capacity: N₀ in counts, the number of adults at which most offspring are laid.
        mortality: δ per sampling interval.
        birth_noise: σ_p, standard deviation of the factor e_t of mean 1.
        survival_noise: σ_d, standard deviation of the factor ε_t of mean 1.
        observation_noise: σ_n, standard deviation of log x_t.
    """

    births: float = math.exp(2)
    capacity: float = math.exp(5)
    mortality: float = math.exp(-1)
    birth_noise: float = math.exp(-0.5)
    survival_noise: float = math.exp(-0.5)
    observation_noise: float = 0.3

    def check(self, section: str) -> None:
        """Raise a UserError that names the first one that is not positive."""
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise UserError(f"{section}.{name} is {value}; give a positive number.")


NAMES = tuple(field.name for field in fields(Population))


@torch.no_grad()
def population_statistics(counts: Tensor) -> Tensor:
    """The ten :data:`STATISTICS` of series (N, T) of counts, shape (N, 10).

    Counts and differences x_{t+1} − x_t are sorted and cut into four; of each part the mean is taken, in thousands, of
    the counts its logarithm. A peak is a largest value since the last trough from which the series falls by more than
    a threshold; troughs likewise.
    """
    thousands = counts.clamp_min(LEAST) / 1000
    levels = torch.stack([part.mean(1) for part in thousands.sort(dim=1).values.tensor_split(4, dim=1)], dim=1)
    sorted_changes = thousands.diff(dim=1).sort(dim=1).values
    changes = torch.stack([part.mean(1) for part in sorted_changes.tensor_split(4, dim=1)], dim=1)
    scaled = thousands / thousands.std(1, keepdim=True).clamp_min(1e-12)
    peaks = torch.stack([count_peaks(scaled, threshold) for threshold in THRESHOLDS], dim=1)
    return torch.cat([levels.log(), changes, peaks], dim=1)


def count_peaks(series: Tensor, threshold: float) -> Tensor:
    """How many peaks higher than a threshold each of the series (N, T) has, shape (N,)."""
    steps = series.T.contiguous()
    low, high, count = steps[0].clone(), steps[0].clone(), torch.zeros_like(steps[0])
    rising = torch.ones_like(low, dtype=torch.bool)
    for value in steps:
        high, low = torch.maximum(high, value), torch.minimum(low, value)
        peak = rising & (value < high - threshold)
        trough = ~rising & (value > low + threshold)
        count += peak
        low, high = torch.where(peak, value, low), torch.where(trough, value, high)
        rising = (rising & ~peak) | trough
    return count


@torch.no_grad()
def period(counts: Tensor) -> Tensor:
    """The period of the strongest oscillation of each series (N, T), in sampling intervals, shape (N,).

    The greatest value of the periodogram between periods of 4 and T/3, on a grid finer than the series' own.
    """
    length = counts.shape[1]
    fine = 16 * length
    power = torch.fft.rfft(counts - counts.mean(1, keepdim=True), n=fine).abs()
    frequency = torch.fft.rfftfreq(fine, dtype=counts.dtype, device=counts.device)
    inside = (frequency <= 0.25) & (frequency >= 3 / length)
    return 1 / frequency[inside][power[:, inside].argmax(1)]


@torch.no_grad()
def growth_correlations(counts: Tensor, lags: int) -> Tensor:
    """Correlation of the growth log(x_t/x_{t−1}) with log x_{t−k} over time, for k = 1 … lags, shape (N, lags).

    Births follow the population of τ intervals before: the lag shows where the correlation is extreme.
    """
    logarithms = counts.clamp_min(LEAST).log()
    growth = logarithms.diff(dim=1)[:, lags - 1 :]
    growth = (growth - growth.mean(1, keepdim=True)) / growth.std(1, keepdim=True).clamp_min(1e-12)
    correlations = []
    for lag in range(1, lags + 1):
        earlier = logarithms[:, lags - lag : logarithms.shape[1] - lag]
        earlier = (earlier - earlier.mean(1, keepdim=True)) / earlier.std(1, keepdim=True).clamp_min(1e-12)
        correlations.append((growth * earlier).mean(1))
    return torch.stack(correlations, dim=1)


class PopulationStatistics(nn.Module):
    """Series (N, T) of counts → their ten statistics, as features of a kernel; nothing in it is trained.

    Args:
        event_shape: (T,).
        lags: how many of :func:`growth_correlations` follow the ten, which say little of the delay; the features are
            then (N, 10 + lags).

    Raises:
        UserError: the observations are no series of at least 8 counts, or shorter than twice the lags.
    """

    def __init__(self, event_shape: tuple[int, ...], lags: int = 0) -> None:
        super().__init__()
        if lags < 0:
            raise UserError(f"PopulationStatistics.lags is {lags}; give 0 for none, or some, such as 12.")
        least = max(8, 2 * lags + 2)
        if len(event_shape) != 1 or event_shape[0] < least:
            raise UserError(
                f"PopulationStatistics with lags={lags} takes series of at least {least} counts (T,), but observations "
                f"have shape {tuple(event_shape)}; give a longer series, or lower its lags."
            )
        self.lags = lags

    def forward(self, x: Tensor) -> Tensor:
        """(N, 10 + lags) from counts (N, T)."""
        statistics = population_statistics(x)
        return torch.cat([statistics, growth_correlations(x, self.lags)], dim=1) if self.lags else statistics
