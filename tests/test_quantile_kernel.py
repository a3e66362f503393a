"""The kernel on normal scores: a Gaussian kernel that no monotone change of the observations alters."""

from __future__ import annotations

import torch

from lightning_alws.quantile_kernel import QuantileKernel


def test_kernel_is_the_gaussian_one_on_normal_scores() -> None:
    kernel = QuantileKernel((2,), bandwidth=0.7)
    x = torch.rand(60, 2, dtype=torch.float64)
    kernel.observe(x)
    ranks = x.argsort(0).argsort(0)
    scores = torch.special.ndtri((ranks.double() + 0.5) / 60)
    torch.testing.assert_close(kernel.scores(x), scores)
    reference = torch.exp(-0.5 * torch.cdist(scores, scores).square() / 0.49)
    torch.testing.assert_close(kernel.gram(x), reference)
    torch.testing.assert_close(kernel.cross(x, x[:5]), reference[:, :5])


def test_no_monotone_change_of_the_observations_alters_it() -> None:
    x, kernel = torch.randn(50, 1, dtype=torch.float64), QuantileKernel((1,))
    kernel.observe(x)
    before = kernel.gram(x)
    kernel.observe(x.exp())
    torch.testing.assert_close(kernel.gram(x.exp()), before)


def test_queries_between_and_beyond_the_samples() -> None:
    kernel = QuantileKernel((1,))
    x = torch.tensor([[3.0], [1.0], [2.0]], dtype=torch.float64)
    kernel.observe(x)
    low, middle, high = torch.special.ndtri((torch.arange(3, dtype=torch.float64) + 0.5) / 3)
    query = torch.tensor([[-9.0], [1.0], [1.5], [2.0], [99.0]], dtype=torch.float64)
    expected = torch.stack([low, low, (low + middle) / 2, middle, high])
    torch.testing.assert_close(kernel.scores(query)[:, 0], expected)


def test_equal_observations_have_equal_finite_scores() -> None:
    kernel = QuantileKernel((1,))
    x = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    kernel.observe(x)
    scores = kernel.scores(x)
    assert torch.isfinite(scores).all()
    assert torch.equal(scores[0], scores[1])
    assert scores[3] > scores[0]
