"""Kernel mean matching against scipy's solver and its optimality conditions; regression weighted by it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.kernel_ridge import KernelRidge as Oracle
from torch import Tensor

from lightning_alws import mean_matching
from lightning_alws.errors import UserError
from lightning_alws.kernels import GaussianKernel
from lightning_alws.mean_matching import ReweightedRidge, mean_matching_weights, project
from lightning_alws.networks import MLPFeatures
from lightning_alws.regression import KernelRidge


def draws(count: int, queries: int, columns: int = 4) -> tuple[Tensor, Tensor]:
    """Samples, and a narrower batch elsewhere, so that many samples are of no use."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(count, columns, generator=draw, dtype=torch.float64)
    return x, 0.5 + 0.6 * torch.randn(queries, columns, generator=draw, dtype=torch.float64)


@torch.no_grad()
def matrices(count: int, queries: int, bandwidth: float = 1.3) -> tuple[Tensor, Tensor]:
    x, wake = draws(count, queries)
    kernel = GaussianKernel((4,), bandwidth=bandwidth).double()
    return kernel.gram(x), kernel.cross(x, wake)


@pytest.mark.parametrize("count", [3, 12, 30])
@pytest.mark.parametrize("limit", [1.5, 10.0])
def test_weights_are_scipys(count: int, limit: float) -> None:
    gram, cross = matrices(count, queries=7)
    ours = mean_matching_weights(gram, cross, limit, tolerance=1e-10).numpy()
    target = count / 7 * cross.sum(1).numpy()

    def value(weights: np.ndarray) -> float:
        return 0.5 * weights @ gram.numpy() @ weights - target @ weights

    reference = minimize(
        value,
        np.ones(count),
        jac=lambda weights: gram.numpy() @ weights - target,
        bounds=[(0, limit)] * count,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - count, "jac": lambda _: np.ones(count)},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    assert value(ours) == pytest.approx(reference.fun, rel=1e-8)
    np.testing.assert_allclose(ours, reference.x, atol=1e-3)


def test_weights_satisfy_the_optimality_conditions() -> None:
    """One multiplier ν: gradient + ν is 0 where 0 < w < limit, not negative at 0, and not positive at the limit."""
    count = 300
    gram, cross = matrices(count, queries=50)
    weights = mean_matching_weights(gram, cross, limit=5.0, tolerance=1e-9)
    assert float(weights.sum()) == pytest.approx(count, rel=1e-10)
    assert weights.min() >= 0
    assert weights.max() <= 5.0
    gradient = gram @ weights - count / 50 * cross.sum(1)
    none, full = weights == 0, weights == 5.0
    free = ~none & ~full
    assert min(none.sum(), full.sum(), free.sum()) > 5  # all three occur
    multiplier = -gradient[free].mean()
    slack = 1e-4 * gradient.abs().max()
    assert (gradient[free] + multiplier).abs().max() < slack
    assert (gradient[none] + multiplier).min() > -slack
    assert (gradient[full] + multiplier).max() < slack


@pytest.mark.parametrize(
    "bandwidth", [pytest.param(0.5, marks=pytest.mark.slow), 1.3, pytest.param(5.0, marks=pytest.mark.slow)]
)
def test_default_accuracy_is_far_below_the_samples_noise(monkeypatch: pytest.MonkeyPatch, bandwidth: float) -> None:
    """The squared MMD between weighted samples and queries against its minimum; the noise is some 1/M."""
    monkeypatch.setattr(mean_matching, "MOST_STEPS", 20_000)
    gram, cross = matrices(400, queries=50, bandwidth=bandwidth)

    def value(weights: Tensor) -> float:
        return float(weights @ gram @ weights / 400**2 - 2 * weights @ cross.sum(1) / (400 * 50))

    rough, exact = (mean_matching_weights(gram, cross, tolerance=tolerance) for tolerance in (1e-5, 1e-7))
    assert abs(value(rough) - value(exact)) < 0.01 / 50
    assert value(exact) < value(torch.ones(400, dtype=torch.float64)) - 0.01 / 50


def test_samples_that_look_like_the_queries_need_no_weights() -> None:
    gram, _ = matrices(50, queries=1)
    torch.testing.assert_close(mean_matching_weights(gram, gram), torch.ones(50, dtype=gram.dtype))


def test_a_kernel_that_sums_to_zero_can_be_matched() -> None:
    """Linear, without offset, on centred samples; and one that is 0 everywhere, for which all weights are alike."""
    x, wake = draws(60, 20)
    x = x - x.mean(0)
    weights = mean_matching_weights(x @ x.T, x @ wake.T, tolerance=1e-8)
    torch.testing.assert_close(weights @ x / 60, wake.mean(0), rtol=0, atol=1e-2)
    zeros = torch.zeros(6, 6, dtype=x.dtype)
    torch.testing.assert_close(mean_matching_weights(zeros, zeros), torch.ones(6, dtype=x.dtype))


def test_weights_prefer_samples_near_the_queries() -> None:
    x, wake = draws(300, 50)
    kernel = GaussianKernel((4,), bandwidth=1.3).double()
    weights = mean_matching_weights(kernel.gram(x), kernel.cross(x, wake))
    assert not weights.requires_grad
    before = (x.mean(0) - wake.mean(0)).norm()
    assert (weights @ x / 300 - wake.mean(0)).norm() < 0.2 * before


def test_projection_is_the_nearest_feasible_point() -> None:
    """w = clip(v − τ) for one τ is what the optimality conditions of the projection ask for."""
    for limit in (1.0, 1.5, 10.0):
        for scale in (0.1, 1.0, 1e3):
            values = scale * torch.randn(41, dtype=torch.float64)
            values[3] = values[7]
            weights = project(values, limit)
            assert float(weights.sum()) == pytest.approx(41, rel=1e-10)
            assert weights.min() >= 0
            assert weights.max() <= limit
            shift = (values - weights)[(weights > 0) & (weights < limit)]
            if len(shift):
                torch.testing.assert_close((values - shift.mean()).clamp(0, limit), weights)
    feasible = project(torch.randn(41, dtype=torch.float64), 2.0)
    torch.testing.assert_close(project(feasible, 2.0), feasible)


def test_too_few_steps_give_feasible_weights_and_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mean_matching, "MOST_STEPS", 2)
    gram, cross = matrices(100, queries=20)
    with pytest.warns(UserWarning, match="importance weights are inexact"):
        weights = mean_matching_weights(gram, cross)
    assert float(weights.sum()) == pytest.approx(100)
    assert weights.min() >= 0


class Given(KernelRidge):
    """Ridge regression with importance weights that are given."""

    def __init__(self, weights: Tensor, ridge: float = 0.05, intercept: bool = False) -> None:
        super().__init__((4,), lambda shape: GaussianKernel(shape, bandwidth=1.3), ridge, intercept)
        self.double()
        self.given = weights

    def importance(self, features: Tensor, wake: Tensor | None) -> Tensor | None:
        return self.given


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, query = draws(40, 7)
    return x, query, torch.randn(40, 3, dtype=torch.float64), 3 * torch.rand(40, dtype=torch.float64) + 0.1


def test_weighted_regression_is_scikit_learns() -> None:
    x, query, y, importance = problem()
    regression = Given(importance)
    prediction = regression.fit(x).weights(query).T @ y
    gamma = float(0.5 * regression.kernel.bandwidth.detach() ** -2)
    oracle = Oracle(alpha=float(regression.ridge.detach()), kernel="rbf", gamma=gamma)
    oracle.fit(x, y, sample_weight=importance.numpy())
    np.testing.assert_allclose(prediction.detach(), oracle.predict(query), rtol=1e-9, atol=1e-10)


def test_weighted_regression_is_its_formula() -> None:
    x, query, _, importance = problem()
    regression = Given(importance)
    matrix = regression.kernel.gram(x) + regression.ridge * torch.diag(1 / importance)
    reference = torch.linalg.solve(matrix, regression.kernel.cross(x, query))
    torch.testing.assert_close(regression.fit(x).weights(query), reference, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("intercept", [False, True])
def test_weights_of_one_change_nothing(intercept: bool) -> None:
    x, query, _, importance = problem()
    weighted = Given(torch.ones_like(importance), intercept=intercept)
    plain = KernelRidge((4,), lambda shape: GaussianKernel(shape, bandwidth=1.3), 0.05, intercept).double()
    torch.testing.assert_close(weighted.fit(x).weights(query), plain.fit(x).weights(query), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("intercept", [False, True])
def test_samples_of_weight_zero_drop_out_exactly(intercept: bool) -> None:
    x, query, _, importance = problem()
    importance[::3] = 0
    kept = importance > 0
    ours = Given(importance, intercept=intercept).fit(x).weights(query)
    without = Given(importance[kept], intercept=intercept).fit(x[kept]).weights(query)
    assert torch.all(ours[~kept] == 0)
    torch.testing.assert_close(ours[kept], without, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("intercept", [False, True])
def test_integer_weights_are_repetitions(intercept: bool) -> None:
    """A sample of weight two is a sample seen twice; its two copies then share its weight in the prediction."""
    x, query, _, _ = problem()
    counts = torch.arange(40) % 4
    once = Given(counts.double(), intercept=intercept).fit(x).weights(query)
    often = Given(torch.ones(int(counts.sum()), dtype=x.dtype), intercept=intercept)
    repeated = often.fit(x.repeat_interleave(counts, 0)).weights(query)
    owner = torch.arange(40).repeat_interleave(counts)
    torch.testing.assert_close(torch.zeros_like(once).index_add(0, owner, repeated), once, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("intercept", [False, True])
def test_kernel_gradient_is_autograds_through_the_formula(intercept: bool) -> None:
    x, query, y, importance = problem()
    regression = Given(importance, intercept=intercept)
    ours = (regression.fit(x).weights(query).T @ y).square().sum()
    matrix = regression.kernel.gram(x) + regression.ridge * torch.diag(1 / importance)
    right = regression.kernel.cross(x, query)
    if intercept:
        one = torch.ones(40, 1, dtype=x.dtype)
        matrix = torch.cat([torch.cat([matrix, one], 1), torch.cat([one.T, torch.zeros(1, 1, dtype=x.dtype)], 1)])
        right = torch.cat([right, torch.ones(1, 7, dtype=x.dtype)])
    plain = (torch.linalg.solve(matrix, right)[:40].T @ y).square().sum()
    torch.testing.assert_close(ours, plain)
    parameters = list(regression.parameters())
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def reweighted(**options) -> ReweightedRidge:
    def kernel(shape: tuple[int, ...]) -> GaussianKernel:
        return GaussianKernel(shape, features=lambda s: MLPFeatures(s, [5], 3), bandwidth=0.7)

    return ReweightedRidge((4,), kernel, ridge=0.1, **options)


def test_reweighted_ridge_is_the_weighted_regression_for_the_wake_batch() -> None:
    x, wake = draws(60, 20)
    regression = reweighted().double()
    features = regression.kernel.features(x)
    gram, cross = regression.kernel.gram(features), regression.kernel.cross(features, regression.kernel.features(wake))
    importance = mean_matching_weights(gram, cross)
    assert (importance == 0).any()
    kept = importance > 0
    matrix = (gram + regression.ridge * torch.diag(1 / importance))[kept][:, kept]
    weights = regression.fit(x, wake).weights(wake)
    torch.testing.assert_close(weights[kept], torch.linalg.solve(matrix, cross[kept]), rtol=1e-8, atol=1e-8)
    assert torch.all(weights[~kept] == 0)
    (weights.T @ torch.randn(60, 1, dtype=x.dtype)).square().sum().backward()
    without = [name for name, parameter in regression.named_parameters() if parameter.grad is None]
    assert without == []


def test_reweighted_ridge_without_a_wake_batch_is_the_plain_one() -> None:
    x, wake = draws(60, 20)
    regression = reweighted().double()
    plain = KernelRidge((4,), lambda shape: regression.kernel, ridge=0.1).double()
    torch.testing.assert_close(regression.fit(x).weights(wake), plain.fit(x).weights(wake))
    assert regression.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_observations_are_named(bad: float) -> None:
    x, wake = draws(30, 5)
    wake[2, 1] = bad
    regression = reweighted().double()
    failure = regression.fit(x, wake).failure
    assert failure is not None
    assert "importance weights hold 30 non-finite" in failure
    x[0, 0] = bad
    failure = regression.fit(x, wake).failure
    assert failure is not None
    assert "sleep samples hold 1 non-finite" in failure


def test_float32_regression_stays_in_float32() -> None:
    x, wake = (each.float() for each in draws(60, 20))
    regression = reweighted()
    fitted = regression.fit(x, wake)
    assert fitted.failure is None
    weights = fitted.weights(wake)
    assert weights.dtype == torch.float32
    exact = regression.double().fit(x.double(), wake.double()).weights(wake.double())
    torch.testing.assert_close(weights.double(), exact, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReweightedRidge((4,), limit=0.5), "regression.limit is 0.5; give at least 1"),
        (lambda: ReweightedRidge((4,), limit=math.nan), "regression.limit is nan"),
        (lambda: ReweightedRidge((4,), ridge=-1.0), "regression.ridge is -1.0"),
    ],
)
def test_mistakes_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
