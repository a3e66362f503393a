"""Ridge regression in random features and on Nyström centres: kernels without bias, dense formulas, exact limits."""

from __future__ import annotations

import functools

import pytest
import torch
from models import LinearGaussian
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.feature_ridge import FeatureRidge, NystromRidge, RandomFeatureRidge
from lightning_alws.kernels import GaussianKernel, MaternKernel, MedianKernel, PolynomialKernel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.objectives import LogJointError
from lightning_alws.regression import KernelRidge, freeze

DOUBLE = torch.float64
KERNELS = {
    "Gaussian": functools.partial(GaussianKernel, bandwidth=2.0),
    "median": MedianKernel,
    "Matérn 1/2": functools.partial(MaternKernel, smoothness=0.5, bandwidth=2.0),
    "Matérn 3/2": functools.partial(MaternKernel, smoothness=1.5, bandwidth=2.0),
    "Matérn 5/2": functools.partial(MaternKernel, smoothness=2.5, bandwidth=2.0),
}
random_features = functools.partial(RandomFeatureRidge, orthogonal=True)
plain_features = functools.partial(RandomFeatureRidge, orthogonal=False)


def made(build, dims: int = 3, **settings) -> FeatureRidge:
    regression = build((dims,), **settings).double()
    regression.initialise(torch.randn(100, dims, dtype=DOUBLE))
    freeze(regression)
    return regression


def products(regression: FeatureRidge, x: Tensor) -> Tensor:
    """ΦΦᵀ."""
    features = regression.kernel.features(x)
    regression.kernel.observe(features)
    mapped = regression.feature_map(features)(features)
    return mapped @ mapped.T


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("orthogonal", [False, True])
def test_random_features_are_unbiased_for_the_kernel(kernel, orthogonal: bool) -> None:
    x = torch.randn(12, 3, dtype=DOUBLE)
    regression = made(RandomFeatureRidge, kernel=kernel, count=60, orthogonal=orthogonal)
    draws = []
    for step in range(100):
        regression.at_step(step)
        draws.append(products(regression, x))
    estimate, error = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 10
    exact = regression.kernel.gram(regression.kernel.features(x))
    distances = ((estimate - exact) / error).abs()
    torch.testing.assert_close(estimate.diagonal(), exact.diagonal())
    # 66 different numbers, each within some standard errors, and together as they should be.
    apart = distances[torch.ones_like(distances).triu(1) > 0]
    assert float(apart.max()) < 4.5
    assert float(apart.square().mean()) < 2


def test_the_error_falls_as_one_over_the_root_of_their_number_and_orthogonality_lowers_it() -> None:
    x = torch.randn(40, 8, dtype=DOUBLE)

    def error(count: int, orthogonal: bool) -> float:
        regression = made(RandomFeatureRidge, 8, kernel=KERNELS["Gaussian"], count=count, orthogonal=orthogonal)
        exact = regression.kernel.gram(x)
        squares = []
        for step in range(20):
            regression.at_step(step)
            squares.append((products(regression, x) - exact).square().mean())
        return float(torch.stack(squares).mean().sqrt())

    assert 3.2 < error(100, False) / error(1600, False) < 4.8
    assert error(100, True) < 0.8 * error(100, False)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("build", [random_features, NystromRidge])
def test_weights_are_those_of_the_dense_formula(build, intercept: bool) -> None:
    """(ΦΦᵀ + λI)⁻¹ Φ φ(x*), as an N × N solve, the intercept as c → ∞ in ΦΦᵀ + c."""
    settings = {"centres": 15} if build is NystromRidge else {"count": 16}
    regression = made(build, kernel=KERNELS["Gaussian"], ridge=0.3, intercept=intercept, **settings)
    x, query = torch.randn(80, 3, dtype=DOUBLE), torch.randn(7, 3, dtype=DOUBLE)
    feature_map = regression.feature_map(x)
    mapped, wanted = feature_map(x), feature_map(query)
    constant = 1e7 if intercept else 0.0
    gram = mapped @ mapped.T + constant + 0.3 * torch.eye(80, dtype=DOUBLE)
    expected = torch.linalg.solve(gram, mapped @ wanted.T + constant)
    weights = regression.fit(x).weights(query)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
    if intercept:
        torch.testing.assert_close(weights.sum(0), torch.ones(7, dtype=DOUBLE))


def test_nystrom_is_the_published_primal_form_with_the_right_matrix() -> None:
    """K_nc (K_cn K_nc + λ K_cc)⁻¹ k_c(x*)."""
    regression = made(NystromRidge, kernel=KERNELS["Matérn 3/2"], ridge=0.3, centres=20)
    x, query = torch.randn(80, 3, dtype=DOUBLE), torch.randn(7, 3, dtype=DOUBLE)
    kernel = regression.kernel
    across = kernel.cross(x, x[:20])
    primal = across.T @ across + 0.3 * kernel.gram(x[:20])
    expected = across @ torch.linalg.solve(primal, kernel.cross(x[:20], query))
    torch.testing.assert_close(regression.fit(x).weights(query), expected, rtol=1e-6, atol=1e-8)


def test_nystrom_on_many_centres_close_together_in_float32() -> None:
    """Centres on a line, whose Gram matrix has a rank of about ten to working precision, against the exact weights."""
    x, query = torch.randn(800, 1), torch.randn(20, 1)
    settings = {"kernel": KERNELS["Gaussian"], "ridge": 1.0}
    nystrom, exact = NystromRidge((1,), centres=800, **settings).fit(x), KernelRidge((1,), **settings).fit(x)
    assert nystrom.failure is None
    torch.testing.assert_close(nystrom.weights(query), exact.weights(query), rtol=0, atol=1e-3)  # the largest: 0.1


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("kernel", [*KERNELS.values(), PolynomialKernel], ids=[*KERNELS, "polynomial"])
def test_nystrom_with_every_sample_for_a_centre_is_exact(kernel, intercept: bool) -> None:
    x, query = torch.randn(8, 3, dtype=DOUBLE), torch.randn(7, 3, dtype=DOUBLE)
    settings = {"kernel": kernel, "ridge": 0.3, "intercept": intercept}
    exact, every = made(KernelRidge, **settings), made(NystromRidge, centres=100, **settings)
    every.load_state_dict(exact.state_dict())
    torch.testing.assert_close(every.fit(x).weights(query), exact.fit(x).weights(query), rtol=1e-5, atol=1e-7)


def test_both_near_the_exact_weights_as_they_grow() -> None:
    x, query = torch.randn(300, 2, dtype=DOUBLE), torch.randn(20, 2, dtype=DOUBLE)
    settings = {"kernel": KERNELS["Gaussian"], "ridge": 1.0}
    exact = made(KernelRidge, 2, **settings).fit(x).weights(query)

    def error(build, **size) -> float:
        return float((made(build, 2, **settings, **size).fit(x).weights(query) - exact).norm() / exact.norm())

    assert error(NystromRidge, centres=60) < 1e-3 < error(NystromRidge, centres=8)
    assert error(random_features, count=2000) < 0.15 < error(random_features, count=50)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("build", [random_features, NystromRidge])
def test_the_gradient_in_the_kernels_parameters_is_that_of_the_formula(build, intercept: bool) -> None:
    size = {"centres": 10} if build is NystromRidge else {"count": 10}
    regression = build((2,), functools.partial(GaussianKernel, bandwidth=1.5), 0.3, intercept, **size).double()
    x, query = torch.randn(30, 2, dtype=DOUBLE), torch.randn(4, 2, dtype=DOUBLE)
    regression.initialise(x)
    direction = torch.randn(30, 4, dtype=DOUBLE)
    parameters = [regression.kernel.log_bandwidth, regression.log_ridge]
    gradients = torch.autograd.grad((regression.fit(x).weights(query) * direction).sum(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(shift)
                values.append((regression.fit(x).weights(query) * direction).sum())
                parameter.sub_(shift)
        torch.testing.assert_close(gradient, (values[0] - values[1]) / 2e-5, rtol=1e-5, atol=1e-6)


def test_each_step_has_its_own_features_and_a_resumed_run_the_same() -> None:
    x = torch.randn(20, 3, dtype=DOUBLE)
    first, second = made(random_features, count=30), made(random_features, count=30)
    first.at_step(3)
    after_three = products(first, x)
    first.at_step(4)
    assert not torch.allclose(products(first, x), after_three)
    second.at_step(3)
    second.kernel.load_state_dict(first.kernel.state_dict())
    torch.testing.assert_close(products(second, x), after_three, rtol=0, atol=0)
    fixed = made(random_features, count=30, redraw=False)
    before = products(fixed, x)
    fixed.at_step(7)
    torch.testing.assert_close(products(fixed, x), before, rtol=0, atol=0)


@pytest.mark.parametrize("build", [random_features, plain_features, NystromRidge])
def test_amortised_learning_takes_it_fixed_and_trained(build) -> None:
    size = {"centres": 50} if build is NystromRidge else {"count": 200}
    for objective in (None, LogJointError()):
        learning = Learning(
            sleep_samples=200,
            held_out=50,
            regression=functools.partial(build, ridge=0.1, **size),
            kernel_objective=objective,
        )
        module = AmortisedLearning(LinearGaussian(), learning)
        module.log = lambda *args, **options: None  # type: ignore[method-assign]
        module.regression.at_step(1)
        module.training_step(module.generative.sleep(20).x, 0).backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_samples_that_are_not_finite_are_named() -> None:
    for build in (random_features, NystromRidge):
        x = torch.randn(30, 3, dtype=DOUBLE)
        x[3, 1] = torch.nan
        assert made(build).fit(x).failure == "sleep samples hold 1 non-finite of 90 values"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (functools.partial(RandomFeatureRidge, count=0), "count is 0"),
        (functools.partial(RandomFeatureRidge, count=7), "count is 7; features come in pairs"),
        (functools.partial(NystromRidge, centres=0), "centres is 0"),
        (functools.partial(NystromRidge, ridge=0.0), "ridge is 0.0"),
        (
            functools.partial(RandomFeatureRidge, kernel=PolynomialKernel),
            "PolynomialKernel does not depend on distances",
        ),
    ],
)
def test_mistakes_are_named(build, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build((3,))
