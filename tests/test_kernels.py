"""Kernels: the formulas, the median rule against numpy's, and float32 where it is known to fail."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from sklearn.gaussian_process.kernels import Matern
from sklearn.metrics.pairwise import polynomial_kernel

from lightning_alws.errors import UserError
from lightning_alws.kernels import (
    GaussianKernel,
    Kernel,
    MaternKernel,
    MedianKernel,
    PolynomialKernel,
    median_of_pairs,
    squared_distances,
)
from lightning_alws.networks import MLPFeatures

EVERY = {
    "gaussian": GaussianKernel,
    "median": MedianKernel,
    "matern 1/2": functools.partial(MaternKernel, smoothness=0.5),
    "matern 3/2": functools.partial(MaternKernel, smoothness=1.5),
    "matern 5/2": functools.partial(MaternKernel, smoothness=2.5),
    "polynomial": PolynomialKernel,
}
every_kernel = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())


@every_kernel
def test_gram_is_the_cross_matrix_with_itself_positive_semi_definite_and_trainable(
    make: Callable[..., Kernel],
) -> None:
    x = torch.randn(25, 1, 2, 2, dtype=torch.float64)
    kernel = make((1, 2, 2), features=lambda shape: MLPFeatures(shape, [5], 3)).double()
    kernel.initialise(x)
    features = kernel.features(x)
    kernel.observe(features)
    gram = kernel.gram(features)
    torch.testing.assert_close(gram, kernel.cross(features, features), rtol=0, atol=1e-7)
    assert torch.linalg.eigvalsh(gram.detach()).min() > -1e-10
    (gram * torch.randn_like(gram)).sum().backward()
    assert [name for name, p in kernel.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    assert kernel.log_bandwidth.grad != 0


@every_kernel
def test_parameters_have_the_names_that_checkpoints_know(make: Callable[..., Kernel]) -> None:
    assert set(dict(make((3,)).named_parameters())) == {"log_bandwidth"}


def test_gaussian_kernel_is_its_formula() -> None:
    a, b = torch.randn(7, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    kernel = GaussianKernel((3,), bandwidth=1.7).double()
    bandwidth = float(kernel.log_bandwidth.detach().exp())  # 1.7 but for float32, in which the parameter was made
    assert bandwidth == pytest.approx(1.7, rel=1e-6)
    for other, ours in ((b, kernel.cross(a, b)), (a, kernel.gram(a))):
        reference = np.exp(-cdist(a, other, "sqeuclidean") / (2 * bandwidth**2))
        np.testing.assert_allclose(ours.detach(), reference, rtol=1e-12)


def test_median_rule_is_numpys() -> None:
    x = torch.randn(31, 1, 2, 2)
    kernel = GaussianKernel((1, 2, 2))
    kernel.initialise(x)
    assert float(kernel.log_bandwidth.exp()) == pytest.approx(np.median(pdist(x.flatten(1))), rel=1e-5)


def test_a_given_bandwidth_is_kept() -> None:
    kernel = GaussianKernel((3,), bandwidth=2.0)
    kernel.initialise(torch.randn(20, 3))
    assert float(kernel.log_bandwidth.exp()) == pytest.approx(2.0)


def test_median_kernel_follows_the_scale_of_the_sleep_features() -> None:
    x = torch.randn(60, 3)
    kernel = MedianKernel((3,), multiple=0.5)
    weights = {}
    for scale in (1.0, 40.0):
        kernel.observe(scale * x)
        assert float(kernel.bandwidth.detach()) == pytest.approx(0.5 * scale * np.median(pdist(x)), rel=1e-5)
        weights[scale] = kernel.gram(scale * x)
    torch.testing.assert_close(weights[1.0], weights[40.0])
    assert set(dict(kernel.named_parameters())) == {"log_bandwidth"}


def scale_gradient(kernel: Kernel) -> float:
    """The derivative in log a of some function of the matrices, for features a g(x)."""
    features = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)
    query = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    kernel.observe(features)
    matrices = torch.cat([kernel.gram(features), kernel.cross(features, query)], dim=1)
    gradients = torch.autograd.grad((matrices * torch.randn_like(matrices)).sum(), (features, query))
    return sum(float((gradient * of).sum()) for gradient, of in zip(gradients, (features, query), strict=True))


def test_the_scale_of_trained_features_has_no_gradient_under_the_median_kernel() -> None:
    """Its matrices do not depend on it; a gradient that says they do shrinks the features without end."""
    torch.manual_seed(0)
    assert abs(scale_gradient(GaussianKernel((3,)).double())) > 1
    kernel = MedianKernel((3,), multiple=0.5).double()
    assert abs(scale_gradient(kernel)) < 1e-10
    copied = copy.deepcopy(kernel)  # nothing of the graph hinders it
    assert float(copied.bandwidth) == float(kernel.bandwidth)
    with torch.no_grad():
        kernel.observe(torch.randn(40, 3).double())
    assert kernel._growth == 1.0


def test_the_median_kernel_bears_features_that_are_all_alike() -> None:
    features = torch.ones(5, 3, requires_grad=True)
    kernel = MedianKernel((3,))
    kernel.observe(features)
    kernel.gram(features).sum().backward()
    assert torch.isfinite(features.grad).all()  # type: ignore[arg-type]


def test_bandwidth_must_be_positive() -> None:
    with pytest.raises(UserError, match="bandwidth is -1"):
        GaussianKernel((3,), bandwidth=-1.0)


def test_distances_far_from_the_origin_keep_their_digits() -> None:
    x = torch.randn(50, 4, dtype=torch.float64)
    far = (x + 1000).float()
    exact = cdist(far.double(), far.double(), "sqeuclidean")
    np.testing.assert_allclose(squared_distances(far, far), exact, atol=1e-4)


def test_distances_are_never_negative_and_have_a_finite_gradient_at_zero() -> None:
    x = torch.randn(20, 3).repeat(2, 1).requires_grad_()
    kernel = GaussianKernel((3,))
    gram = kernel.gram(x)
    gram.sum().backward()
    assert (squared_distances(x, x) >= 0).all()
    assert torch.isfinite(x.grad).all()
    assert torch.all(gram.diagonal() == 1)


def test_features_ignore_autocast() -> None:
    kernel = GaussianKernel((8,), features=lambda shape: MLPFeatures(shape, [16], 4))
    x = torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = kernel.features(x)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, kernel.features(x), rtol=0, atol=0)


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_matern_kernel_is_scikit_learns(smoothness: float) -> None:
    a, b = torch.randn(7, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    a[4] = a[1]
    kernel = MaternKernel((3,), bandwidth=1.7, smoothness=smoothness).double()
    oracle = Matern(length_scale=float(kernel.bandwidth.detach()), nu=smoothness)
    np.testing.assert_allclose(kernel.cross(a, b).detach(), oracle(a.numpy(), b.numpy()), rtol=1e-10)
    # √ of what rounding leaves of the distance between coinciding points, 1e-16, is 1e-8.
    np.testing.assert_allclose(kernel.gram(a).detach(), oracle(a.numpy()), rtol=1e-10, atol=1e-7)


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_matern_gradient_is_that_of_finite_differences(smoothness: float) -> None:
    features, query = torch.randn(6, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    # Coinciding with others; at a kink (ν = 1/2) the gradient is zero, as central differences have it.
    features[4], query[0] = features[1], features[2]
    kernel = MaternKernel((2,), bandwidth=0.8, smoothness=smoothness).double()

    def matrices(features: torch.Tensor, log_bandwidth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        def both(kernel: Kernel) -> tuple[torch.Tensor, torch.Tensor]:
            return kernel.gram(features), kernel.cross(features, query)

        return torch.func.functional_call(_Call(kernel, both), {"module.log_bandwidth": log_bandwidth}, ())

    inputs = (features.requires_grad_(), kernel.log_bandwidth.detach().requires_grad_())
    # Steps that are large beside 1e-8: see above; what they leave out is of the order of their square.
    assert torch.autograd.gradcheck(matrices, inputs, eps=1e-3, atol=1e-4, rtol=1e-4)


class _Call(torch.nn.Module):
    def __init__(self, module: torch.nn.Module, function) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self):
        return self.function(self.module)


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matern_gradient_is_finite_where_features_coincide(smoothness: float, dtype: torch.dtype) -> None:
    """Where all coincide, exactly at the distance zero, it is zero."""
    kernel = MaternKernel((3,), bandwidth=1.0, smoothness=smoothness).to(dtype)
    pairs = torch.randn(20, 3, dtype=dtype).repeat(2, 1).requires_grad_()
    alike = torch.ones(4, 3, dtype=dtype).requires_grad_()
    for features in (pairs, alike):
        gram, cross = kernel.gram(features), kernel.cross(features, features)
        (gram.square().sum() + cross.square().sum()).backward()
        assert torch.all(gram.diagonal() == 1)
        assert torch.isfinite(features.grad).all()
    assert torch.all(alike.grad == 0)
    assert torch.isfinite(kernel.log_bandwidth.grad)


def test_matern_bandwidth_is_the_median_distance() -> None:
    x = torch.randn(31, 3)
    kernel = MaternKernel((3,))
    kernel.initialise(x)
    assert float(kernel.bandwidth.detach()) == pytest.approx(np.median(pdist(x)), rel=1e-5)


@pytest.mark.parametrize(("degree", "offset"), [(1, 0.0), (2, 1.0), (3, 0.5)])
def test_polynomial_kernel_is_scikit_learns(degree: int, offset: float) -> None:
    a, b = torch.randn(7, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    kernel = PolynomialKernel((3,), bandwidth=1.7, degree=degree, offset=offset).double()
    oracle = functools.partial(
        polynomial_kernel, degree=degree, gamma=1 / float(kernel.bandwidth.detach()), coef0=offset
    )
    np.testing.assert_allclose(kernel.cross(a, b).detach(), oracle(a.numpy(), b.numpy()), rtol=1e-10)
    np.testing.assert_allclose(kernel.gram(a).detach(), oracle(a, a), rtol=1e-10)


def test_polynomial_scale_is_the_median_squared_norm() -> None:
    x = 30 * torch.randn(30, 1, 2, 2) + 5
    kernel = PolynomialKernel((1, 2, 2))
    kernel.initialise(x)
    norms = np.square(x.flatten(1).numpy()).sum(1)
    assert float(kernel.bandwidth.detach()) == pytest.approx(np.median(norms), rel=1e-5)
    assert float(kernel.gram(kernel.features(x)).diagonal().median()) == pytest.approx(4, rel=0.2)  # (c + 1)^p


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaternKernel((3,), smoothness=2.0), "smoothness is 2.0; give 0.5, 1.5 or 2.5"),
        (lambda: MaternKernel((3,), bandwidth=0.0), "bandwidth is 0.0"),
        (lambda: PolynomialKernel((3,), degree=0), "degree is 0"),
        (lambda: PolynomialKernel((3,), degree=1.5), "degree is 1.5"),
        (lambda: PolynomialKernel((3,), offset=-1.0), "offset is -1.0"),
        (lambda: PolynomialKernel((3,), bandwidth=-2.0), "bandwidth is -2.0"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Kernel], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_the_median_kernel_of_equal_samples_is_a_number() -> None:
    """A model that has come to make one image only: equal samples are alike, all else is not."""
    kernel = MedianKernel((3,))
    features = torch.ones(10, 3)
    kernel.observe(features)
    torch.testing.assert_close(kernel.gram(features), torch.ones(10, 10))
    cross = kernel.cross(features, torch.cat([features[:1], features[:1] + 1]))
    torch.testing.assert_close(cross, torch.tensor([1.0, 0.0]).expand(10, 2))


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_gaussian_gradient_is_that_of_finite_differences(shift: float) -> None:
    features, query = torch.randn(6, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    features[4], query[0] = features[1], features[2]  # coinciding with others
    kernel = GaussianKernel((2,), bandwidth=0.8).double()

    def matrices(features: torch.Tensor, query: torch.Tensor, log_bandwidth: torch.Tensor) -> tuple[torch.Tensor, ...]:
        def both(kernel: Kernel) -> tuple[torch.Tensor, torch.Tensor]:
            return kernel.gram(features), kernel.cross(features, query)

        return torch.func.functional_call(_Call(kernel, both), {"module.log_bandwidth": log_bandwidth}, ())

    inputs = [(features + shift).requires_grad_(), (query + shift).requires_grad_()]
    log_bandwidth = kernel.log_bandwidth.detach().requires_grad_()
    assert torch.autograd.gradcheck(matrices, (*inputs, log_bandwidth), eps=1e-5, atol=1e-6)


def test_gaussian_gradient_in_float32_is_near_that_in_float64() -> None:
    """In 100 dimensions, where the norms that cancel are a hundred times as large as what they leave."""
    features, query = torch.randn(40, 100), torch.randn(10, 100)
    features[1] = features[0] + 1e-3
    towards = torch.randn(40, 50)

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        kernel, leaf = GaussianKernel((100,), bandwidth=10.0).to(dtype), features.to(dtype).requires_grad_()
        both = torch.cat([kernel.gram(leaf), kernel.cross(leaf, query.to(dtype))], dim=1)
        grads = torch.autograd.grad((both * towards.to(dtype)).sum(), [leaf, kernel.log_bandwidth])
        return torch.cat([grad.flatten().double() for grad in grads])

    exact = gradient(torch.float64)
    assert float((gradient(torch.float32) - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize("count", [2, 3, 4, 30])
@pytest.mark.parametrize("equal", [False, True])
def test_median_of_pairs_is_the_mean_of_the_two_middle_values(count: int, equal: bool) -> None:
    x = torch.randn(count, 2).round() if equal else torch.randn(count, 2)
    squared = torch.cdist(x.double(), x.double()).square().float()
    above = squared[torch.ones_like(squared).triu(1) > 0].sqrt()
    assert float(median_of_pairs(squared)) == pytest.approx(max(float(np.median(above.numpy())), 1e-19), rel=1e-6)
    squared[0, 1] = math.nan
    assert math.isnan(float(median_of_pairs(squared)))
