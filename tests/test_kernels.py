"""Kernels: the formula, the median rule against numpy's, and float32 where it is known to fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist

from lightning_alws.errors import UserError
from lightning_alws.kernels import GaussianKernel, MedianKernel, full_precision, squared_distances
from lightning_alws.networks import MLPFeatures


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


def test_full_precision_restores_the_users_choice() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
