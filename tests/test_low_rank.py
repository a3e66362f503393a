"""Low-rank ridge regression gives the weights of the exact one, or says that it cannot."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from models import LinearGaussian

from lightning_alws.errors import UserError
from lightning_alws.kernels import GaussianKernel, MaternKernel, MedianKernel, PolynomialKernel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.low_rank import LowRankRidge, pivoted_cholesky
from lightning_alws.objectives import LogJointError
from lightning_alws.quantile_kernel import QuantileKernel
from lightning_alws.regression import KernelRidge, freeze

KERNELS = {
    "Gaussian": GaussianKernel,
    "median": functools.partial(MedianKernel, multiple=0.5),
    "Matérn": functools.partial(MaternKernel, smoothness=2.5, bandwidth=5.0),
    "quantile": QuantileKernel,
}


def pair(kernel, dims: int, **settings) -> tuple[KernelRidge, LowRankRidge]:
    both = KernelRidge((dims,), kernel, **settings).double(), LowRankRidge((dims,), kernel, **settings).double()
    for regression in both:
        regression.initialise(torch.linspace(-2, 2, 40, dtype=torch.float64)[:, None].expand(40, dims))
        freeze(regression)
    return both


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("intercept", [False, True])
def test_weights_are_those_of_the_exact_regression(kernel, intercept: bool) -> None:
    x, query = torch.randn(300, 1, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64) * 1.5
    exact, low = pair(kernel, 1, ridge=0.1, intercept=intercept)
    torch.testing.assert_close(low.fit(x).weights(query), exact.fit(x).weights(query), rtol=0, atol=1e-6)


def test_two_dimensions_and_float32() -> None:
    x, query = torch.randn(400, 2), torch.randn(20, 2)
    exact, low = pair(functools.partial(GaussianKernel, bandwidth=2.0), 2, ridge=0.1)
    weights = low.fit(x).weights(query)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, exact.fit(x.double()).weights(query.double()).float(), rtol=0, atol=1e-5)


def test_factor_is_within_the_tolerance_and_its_rank_does_not_grow_with_the_samples() -> None:
    kernel = GaussianKernel((1,), bandwidth=1.0)
    ranks = []
    for count in (200, 1600):
        x = torch.linspace(-3, 3, count, dtype=torch.float64)[:, None]
        factor, pivots, error = pivoted_cholesky(kernel, x, 1e-8, 100)
        assert float((kernel.gram(x) - factor @ factor.T).abs().max()) <= 1.01e-8
        assert error <= 1e-8
        assert float(factor[pivots].triu(1).abs().max()) < 1e-10
        ranks.append(factor.shape[1])
    assert max(ranks) - min(ranks) <= 2
    assert max(ranks) < 30


def test_failures_are_named() -> None:
    x = torch.randn(50, 1)
    low = LowRankRidge((1,), functools.partial(GaussianKernel, bandwidth=1e-3), max_rank=10)
    freeze(low)
    assert "not of rank 10" in str(low.fit(x).failure)
    x[3] = math.nan
    assert "sleep samples hold 1 non-finite of 50 values" in str(low.fit(x).failure)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="tolerance is 0"):
        LowRankRidge((1,), tolerance=0.0)
    with pytest.raises(UserError, match="max_rank is -1"):
        LowRankRidge((1,), max_rank=-1)
    polynomial = LowRankRidge((1,), functools.partial(PolynomialKernel, bandwidth=1.0))
    freeze(polynomial)
    with pytest.raises(UserError, match="PolynomialKernel is not 1 on the diagonal"):
        polynomial.fit(torch.randn(10, 1))
    learning = Learning(sleep_samples=20, regression=LowRankRidge, kernel_objective=LogJointError())
    module = AmortisedLearning(LinearGaussian(observed_dim=1), learning)
    with pytest.raises(UserError, match=r"LowRankRidge, whose kernel is fixed, but model.learning.kernel_objective"):
        module.training_step(torch.randn(4, 1, dtype=torch.float64), 0)
