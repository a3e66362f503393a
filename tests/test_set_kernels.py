"""Set kernels: against plain loops, blind to order, positive semi-definite, and the same in blocks as at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist
from torch import Tensor

from lightning_alws import set_kernels
from lightning_alws.errors import UserError
from lightning_alws.networks import MLPFeatures
from lightning_alws.regression import KernelRidge
from lightning_alws.set_kernels import SetGaussianKernel, SetMeanKernel

BANDWIDTHS = {"bandwidth": 0.6, "inner_bandwidth": 1.3}
both_kernels = pytest.mark.parametrize("make", [SetMeanKernel, SetGaussianKernel])


def sets(count: int = 12, size: int = 5, *element: int) -> Tensor:
    """Sets that differ in place and spread."""
    noise = torch.randn(count, size, *element, dtype=torch.float64)
    shape = (count, 1, *[1] * len(element))
    return torch.randn(shape, dtype=torch.float64) + noise * torch.rand(shape, dtype=torch.float64).add(0.3)


def squared_mmd(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """Σ_ab k(x_a, x_b)/n² + Σ_ab k(y_a, y_b)/m² − 2 Σ_ab k(x_a, y_b)/(nm), one pair at a time."""

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        values = [np.exp(-np.sum((p - q) ** 2) / (2 * bandwidth**2)) for p in a for q in b]
        return sum(values) / len(values)

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


@pytest.mark.parametrize("pairs", [2**24, 100, 1], ids=["at once", "some rows", "pair by pair"])
def test_gaussian_of_mmd_is_a_plain_loop(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    """Also for queries of another size, and in blocks however small."""
    monkeypatch.setattr(set_kernels, "PAIRS", pairs)
    x, query = sets(6, 4, 2), sets(3, 5, 2)
    kernel = SetGaussianKernel((4, 2), **BANDWIDTHS).double()
    outer, inner = (float(value.detach()) for value in (kernel.bandwidth, kernel.inner_bandwidth))
    features = kernel.features(x)
    for other, ours in ((x, kernel.gram(features)), (query, kernel.cross(features, kernel.features(query)))):
        reference = [[np.exp(-squared_mmd(a, b, inner) / (2 * outer**2)) for b in other.numpy()] for a in x.numpy()]
        np.testing.assert_allclose(ours.detach(), reference, rtol=1e-12, atol=1e-12)


def test_gradient_in_blocks_is_that_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = sets(6, 4, 2)
    kernel = SetGaussianKernel((4, 2), features=lambda shape: MLPFeatures(shape, [5], 3), **BANDWIDTHS).double()
    weights = torch.randn(6, 6, dtype=torch.float64)
    gradients = []
    for pairs in (2**24, 40):
        monkeypatch.setattr(set_kernels, "PAIRS", pairs)
        features = kernel.features(x)
        loss = (weights * (kernel.gram(features) + kernel.cross(features, features))).sum()
        gradients.append(torch.autograd.grad(loss, list(kernel.parameters())))
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-10)


def test_gradient_is_that_of_finite_differences() -> None:
    kernel = SetGaussianKernel((3, 2), **BANDWIDTHS).double()
    features, query = sets(4, 3, 2), sets(2, 3, 2)
    query[1] = features[2]

    def matrices(features: Tensor) -> tuple[Tensor, Tensor]:
        return kernel.gram(features), kernel.cross(features, query)

    assert torch.autograd.gradcheck(matrices, features.requires_grad_())


def test_set_mean_kernel_is_the_gaussian_of_the_distance_between_means() -> None:
    x, query = sets(6, 4, 2, 3), sets(3, 5, 2, 3)
    kernel = SetMeanKernel((4, 2, 3), bandwidth=0.6).double()
    bandwidth = float(kernel.bandwidth.detach())
    features = kernel.features(x)
    means = x.mean(1).flatten(1)
    for other, ours in ((x, kernel.gram(features)), (query, kernel.cross(features, kernel.features(query)))):
        reference = np.exp(-cdist(means, other.mean(1).flatten(1), "sqeuclidean") / (2 * bandwidth**2))
        np.testing.assert_allclose(ours.detach(), reference, rtol=1e-10)


def test_mmd_sees_what_the_mean_does_not() -> None:
    narrow = sets(1, 200)
    narrow = (narrow - narrow.mean()) / narrow.std()
    x = torch.cat([narrow, 5 * narrow])
    blind, sees = SetMeanKernel((200,), bandwidth=0.5).double(), SetGaussianKernel((200,), **BANDWIDTHS).double()
    assert blind.gram(blind.features(x))[0, 1].detach() == pytest.approx(1)
    assert sees.gram(sees.features(x))[0, 1].detach() < 0.8


@both_kernels
@pytest.mark.parametrize("element", [(), (2,), (2, 3)])
def test_order_within_a_set_does_not_matter(make: Callable[..., SetMeanKernel], element: tuple[int, ...]) -> None:
    x, query = sets(6, 5, *element), sets(3, 5, *element)
    kernel = make((5, *element), features=lambda shape: MLPFeatures(shape, [5], 3)).double()
    kernel.initialise(x)
    shuffled = torch.stack([observation[torch.randperm(5)] for observation in x])
    assert not torch.equal(shuffled, x)
    a, b, wake = (kernel.features(each) for each in (x, shuffled, query))
    torch.testing.assert_close(kernel.gram(a), kernel.gram(b), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel.cross(a, wake), kernel.cross(b, wake), rtol=1e-12, atol=1e-12)


@both_kernels
def test_positive_semi_definite_and_within_bounds(make: Callable[..., SetMeanKernel]) -> None:
    """Which the published product of the self terms, in place of their sum, would not be."""
    x = sets(40, 6, 2)
    kernel = make((6, 2)).double()
    kernel.initialise(x)
    gram = kernel.gram(kernel.features(x)).detach()
    assert torch.linalg.eigvalsh(gram).min() > -1e-10
    assert torch.all(gram.diagonal() == 1)
    assert torch.all((gram > 0) & (gram <= 1))
    torch.testing.assert_close(gram, gram.T, rtol=1e-12, atol=1e-12)


def test_both_bandwidths_are_medians() -> None:
    x = sets(20, 6, 2)
    kernel = SetGaussianKernel((6, 2)).double()
    kernel.initialise(x)
    inner = float(kernel.inner_bandwidth.detach())
    assert inner == pytest.approx(np.median(pdist(x.flatten(0, 1))), rel=1e-6)
    distances = [squared_mmd(a, b, inner) ** 0.5 for i, a in enumerate(x.numpy()) for b in x.numpy()[i + 1 :]]
    assert float(kernel.bandwidth.detach()) == pytest.approx(np.median(distances), rel=1e-6)
    means = SetMeanKernel((6, 2)).double()
    means.initialise(x)
    assert float(means.bandwidth.detach()) == pytest.approx(np.median(pdist(x.mean(1))), rel=1e-6)


@pytest.mark.parametrize("given", BANDWIDTHS)
def test_a_given_bandwidth_is_kept(given: str) -> None:
    kernel = SetGaussianKernel((6, 2), **{given: BANDWIDTHS[given]})
    before = {name: getattr(kernel, name).detach() for name in BANDWIDTHS}
    kernel.initialise(sets(20, 6, 2).float())
    kept = {name for name in BANDWIDTHS if torch.equal(getattr(kernel, name).detach(), before[name])}
    assert kept == {given}


def test_inner_bandwidth_of_many_elements_is_found_from_some() -> None:
    """And where an element's place in the set tells what it is, all places are among them."""
    x = torch.randn(600, 10) + 5 * torch.arange(10)
    kernel = SetGaussianKernel((10,))
    kernel.initialise(x)
    draw = x.flatten()[torch.randperm(6000, generator=torch.Generator().manual_seed(1))[:1500]]
    assert float(kernel.inner_bandwidth.detach()) == pytest.approx(np.median(pdist(draw[:, None])), rel=0.05)


@both_kernels
def test_ridge_regression_on_sets_and_gradients_of_every_parameter(make: Callable[..., SetMeanKernel]) -> None:
    x, query = sets(30, 6, 2), sets(4, 6, 2)
    regression = KernelRidge(
        (6, 2), lambda shape: make(shape, features=lambda s: MLPFeatures(s, [5], 3)), ridge=0.1
    ).double()
    regression.initialise(x)
    fitted = regression.fit(x)
    assert fitted.failure is None
    weights = fitted.weights(query)
    gram = regression.kernel.gram(regression.kernel.features(x)) + regression.ridge * torch.eye(30, dtype=x.dtype)
    right = regression.kernel.cross(regression.kernel.features(x), regression.kernel.features(query))
    torch.testing.assert_close(weights, torch.linalg.solve(gram, right), rtol=1e-8, atol=1e-8)
    (weights.T @ torch.randn(30, 1, dtype=x.dtype)).square().sum().backward()
    without = [name for name, parameter in regression.named_parameters() if parameter.grad is None]
    assert without == []


def test_equal_sets_have_kernel_one_in_float32() -> None:
    x = 100 + sets(5, 20, 3).float()
    kernel = SetGaussianKernel((20, 3))
    kernel.initialise(x)
    features = kernel.features(x)
    diagonal = kernel.cross(features, kernel.features(x.flip(1))).diagonal()
    torch.testing.assert_close(diagonal, torch.ones(5), rtol=0, atol=1e-3)
    assert diagonal.max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SetMeanKernel(()), r"observations of shape \(\)"),
        (lambda: SetGaussianKernel((1, 28, 28)), r"observations of shape \(1, 28, 28\)"),
        (lambda: SetGaussianKernel((4, 2), inner_bandwidth=0.0), "inner_bandwidth is 0.0"),
        (lambda: SetGaussianKernel((4, 2), bandwidth=-1.0), "bandwidth is -1.0"),
        (lambda: SetGaussianKernel((4, 2)).features(torch.zeros(3, 4, 5)), r"elements of shape \(2,\).* \(3, 4, 5\)"),
        (lambda: SetMeanKernel((4,)).features(torch.zeros(3)), r"elements of shape \(\).* \(3,\)"),
    ],
)
def test_mistakes_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
