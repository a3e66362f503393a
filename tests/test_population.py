"""Summary statistics of counts: worked out by hand, and on series whose cycles are known."""

import math

import pytest
import torch

from lightning_alws.errors import UserError
from lightning_alws.population import (
    NAMES,
    STATISTICS,
    Population,
    PopulationStatistics,
    growth_correlations,
    period,
    population_statistics,
)


def test_levels_and_changes_are_means_of_the_sorted_quarters() -> None:
    counts = torch.tensor([[4.0, 1, 3, 2, 8, 5, 7, 6, 9]], dtype=torch.float64) * 1000
    statistics = dict(zip(STATISTICS, population_statistics(counts)[0].tolist(), strict=True))
    quarters = [[1, 2, 3], [4, 5], [6, 7], [8, 9]]
    for number, quarter in enumerate(quarters, start=1):
        assert statistics[f"log_level_{number}"] == pytest.approx(math.log(sum(quarter) / len(quarter)))
    changes = [[-3, -3], [-1, -1], [2, 2], [3, 6]]  # of −3, 2, −1, 6, −3, 2, −1, 3
    for number, quarter in enumerate(changes, start=1):
        assert statistics[f"change_{number}"] == pytest.approx(sum(quarter) / 2)


def test_peaks_are_counted_where_the_series_falls_far_enough() -> None:
    """Three cycles and a ripple on each: the ripple is below the high threshold."""
    cycle = [0, 4, 3, 4, 0]
    counts = torch.tensor([cycle * 3], dtype=torch.float64) * 100 + 1
    scale = float(counts.std()) / 100
    assert 1 / scale > 0.5  # the ripple
    assert 1 / scale < 1.5
    statistics = dict(zip(STATISTICS, population_statistics(counts)[0].tolist(), strict=True))
    assert (statistics["peaks"], statistics["high_peaks"]) == (6, 3)


def test_no_peak_where_the_series_only_rises() -> None:
    assert population_statistics(torch.arange(1.0, 41)[None])[0, -2:].tolist() == [0, 0]


def test_a_population_that_dies_out_has_finite_statistics() -> None:
    assert torch.isfinite(population_statistics(torch.zeros(2, 40))).all()


@pytest.mark.parametrize("length", [6.0, 11.3, 19.0])
def test_period_of_a_wave(length: float) -> None:
    times = torch.arange(180.0)
    waves = torch.stack([100 + 50 * (2 * math.pi * times / length + phase).sin() for phase in (0.0, 1.0)])
    torch.testing.assert_close(period(waves), torch.full((2,), length), rtol=0.02, atol=0)


def test_features_are_the_statistics() -> None:
    counts = 100 + 900 * torch.rand(3, 20)
    assert torch.equal(PopulationStatistics((20,))(counts), population_statistics(counts))
    for shape in ((7,), (3, 20)):
        with pytest.raises(UserError, match="at least 8 counts"):
            PopulationStatistics(shape)


def test_parameters_are_positive() -> None:
    Population().check("model.initial")
    for name in NAMES:
        with pytest.raises(UserError, match=f"data.truth.{name} is 0"):
            Population(**{name: 0.0}).check("data.truth")


def test_growth_is_correlated_with_the_population_a_delay_before() -> None:
    """log x_t = log x_{t−1} − 0.5 log x_{t−3} + noise: the third lag stands out."""
    torch.manual_seed(0)
    logarithms = 0.1 * torch.randn(4, 400, dtype=torch.float64)
    for t in range(3, 400):
        logarithms[:, t] += 0.7 * logarithms[:, t - 1] - 0.5 * logarithms[:, t - 3]
    correlations = growth_correlations((5 + logarithms).exp(), 6)
    pairs = torch.stack([logarithms[0].diff()[5:], logarithms[0, 3:-3]])
    assert float(correlations[0, 2]) == pytest.approx(float(pairs.corrcoef()[0, 1]), rel=0.01)
    assert (correlations.abs().argmax(1) == 2).all()


def test_features_may_be_followed_by_growth_correlations() -> None:
    counts = 100 + 900 * torch.rand(3, 40)
    features = PopulationStatistics((40,), lags=5)(counts)
    assert torch.equal(features, torch.cat([population_statistics(counts), growth_correlations(counts, 5)], dim=1))
    with pytest.raises(UserError, match="at least 42 counts"):
        PopulationStatistics((40,), lags=20)
    with pytest.raises(UserError, match="lags is -1"):
        PopulationStatistics((40,), lags=-1)
