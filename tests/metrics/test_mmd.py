"""MMD² against a loop over pairs and the value for two Gaussians; its law between samples of one law."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.kernels import median_distance
from lightning_alws.metrics.mmd import median_bandwidth, null_distribution, squared_mmd


def by_loops(x: Tensor, y: Tensor, bandwidth: float) -> float:
    def mean(a: Tensor, b: Tensor) -> float:
        values = [
            math.exp(-float((p - q).square().sum()) / (2 * bandwidth**2))
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if a is not b or i != j
        ]
        return sum(values) / len(values)

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


@pytest.mark.parametrize("bandwidth", [0.3, 2.0])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 7), (5, 12)])
def test_it_is_the_mean_over_pairs(n: int, m: int, bandwidth: float) -> None:
    x, y = torch.randn(n, 3).double(), 1 + torch.randn(m, 3).double()
    assert squared_mmd(x, y, bandwidth) == pytest.approx(by_loops(x, y, bandwidth), rel=1e-10, abs=1e-14)
    assert squared_mmd(y, x, bandwidth) == pytest.approx(squared_mmd(x, y, bandwidth), rel=1e-10, abs=1e-14)


def test_two_gaussians_a_mean_apart() -> None:
    """E k(x, x') = (s²/(s² + 2))^{D/2}, and across with exp(−‖δ‖²/(2(s² + 2))); unbiased, within 4 standard errors."""
    bandwidth, shift = 1.5, torch.tensor([0.6, -0.3])
    variance = bandwidth**2 + 2
    exact = 2 * (bandwidth**2 / variance) * (1 - math.exp(-float(shift.square().sum()) / (2 * variance)))
    values = torch.tensor([squared_mmd(torch.randn(60, 2), shift + torch.randn(50, 2), bandwidth) for _ in range(300)])
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / 300**0.5
    assert float(values.std()) / 300**0.5 < 0.1 * exact


def test_median_bandwidth_is_that_of_both_samples() -> None:
    x, y = torch.randn(30, 2), 3 + torch.randn(20, 2)
    assert median_bandwidth(x, y) == pytest.approx(float(median_distance(torch.cat([x, y]))), rel=1e-5)
    assert squared_mmd(x, y) == pytest.approx(squared_mmd(x, y, median_bandwidth(x, y)), rel=1e-10)
    # Of many points, as many of either side.
    assert median_bandwidth(torch.randn(5000, 2), 100 + torch.randn(5000, 2)) == pytest.approx(100, abs=50)


def test_null_distribution_is_made_of_splits() -> None:
    pool = torch.randn(11, 2).double()
    generator, expected = torch.Generator().manual_seed(3), []
    for _ in range(6):
        ranks = torch.randperm(11, generator=generator)
        expected.append(by_loops(pool[ranks < 4], pool[ranks >= 4], 0.8))
    null = null_distribution(pool, 4, 0.8, 6, torch.Generator().manual_seed(3))
    torch.testing.assert_close(null, torch.tensor(expected, dtype=torch.float64))


def test_splits_have_the_law_of_fresh_samples() -> None:
    """Spread and 99 % point of random splits of one pool agree with those of independent pairs of samples."""
    fresh = torch.tensor([squared_mmd(torch.randn(100, 2), torch.randn(100, 2), 1.7) for _ in range(400)])
    null = null_distribution(torch.randn(200, 2), 100, 1.7, 400, torch.Generator().manual_seed(1))
    assert abs(float(null.mean())) < 4 * float(null.std()) / 20
    assert float(null.std()) == pytest.approx(float(fresh.std()), rel=0.25)
    assert float(null.quantile(0.99)) == pytest.approx(float(fresh.quantile(0.99)), rel=0.5)


def test_a_permutation_test_tells_laws_apart() -> None:
    def p_value(y: Tensor) -> float:
        x = torch.randn(80, 2)
        null = null_distribution(torch.cat([x, y]), 80, 1.7, 200, torch.Generator().manual_seed(1))
        return float((null >= squared_mmd(x, y, 1.7)).float().mean())

    assert p_value(0.8 + torch.randn(80, 2)) < 0.01
    p_values = torch.tensor([p_value(torch.randn(80, 2)) for _ in range(40)])
    assert 0.35 < float(p_values.mean()) < 0.65  # uniform: 0.5 ± 0.05


def test_global_random_state_is_untouched_and_single_precision_is_enough() -> None:
    x, y = 50 + torch.randn(40, 2), 50 + torch.randn(40, 2)
    before = torch.get_rng_state()
    null_distribution(x, 20, 1.0, 3, torch.Generator())
    assert squared_mmd(x, y, 1.0) == pytest.approx(squared_mmd(x.double() - 50, y.double() - 50, 1.0), abs=1e-6)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: squared_mmd(torch.zeros(1, 2), torch.zeros(5, 2)), r"shapes \(1, 2\) and \(5, 2\)"),
        (lambda: squared_mmd(torch.zeros(5, 2), torch.zeros(5, 3)), r"shapes \(5, 2\) and \(5, 3\)"),
        (lambda: squared_mmd(torch.zeros(5), torch.zeros(5)), "two matrices"),
        (lambda: squared_mmd(torch.zeros(5, 2), torch.zeros(5, 2), 0.0), "bandwidth is 0"),
        (lambda: null_distribution(torch.zeros(5, 2), 4, 1.0, 3, torch.Generator()), "size is 4 for a pool of 5"),
        (lambda: null_distribution(torch.zeros(5, 2), 2, 1.0, 0, torch.Generator()), "repeats is 0"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()
