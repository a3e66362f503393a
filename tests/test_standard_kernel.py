"""The kernel on standard scores: linear regression in the statistics, whatever their units; far data are cut off."""

from __future__ import annotations

import functools

import pytest
import torch

from lightning_alws.errors import UserError
from lightning_alws.regression import KernelRidge
from lightning_alws.standard_kernel import StandardKernel


def test_units_and_origins_do_not_matter() -> None:
    x, query = torch.randn(50, 4).double(), torch.randn(3, 4).double()
    scale, shift = torch.tensor([1e-3, 1.0, 50.0, 2e4]).double(), torch.tensor([5.0, -1e3, 0.0, 1.0]).double()
    results = []
    for change in (lambda x: x, lambda x: x * scale + shift):
        regression = KernelRidge((4,), StandardKernel, ridge=0.1, intercept=True).double().requires_grad_(False)
        results.append(regression.fit(change(x)).weights(change(query)))
    torch.testing.assert_close(*results)


def test_degree_one_is_linear_regression() -> None:
    x, query = torch.randn(200, 3).double(), torch.randn(5, 3).double()
    y = x @ torch.tensor([2.0, -1.0, 0.5]).double() + 4
    regression = KernelRidge((3,), StandardKernel, ridge=1e-6, intercept=True).double().requires_grad_(False)
    predicted = regression.fit(x).weights(query).T @ y
    torch.testing.assert_close(predicted, query @ torch.tensor([2.0, -1.0, 0.5]).double() + 4, rtol=1e-4, atol=1e-4)


def test_degree_two_takes_products() -> None:
    x, query = torch.randn(300, 3).double(), torch.randn(5, 3).double()
    kernel = functools.partial(StandardKernel, degree=2, limit=20.0)
    regression = KernelRidge((3,), kernel, ridge=1e-6, intercept=True).double().requires_grad_(False)
    predicted = regression.fit(x).weights(query).T @ (x[:, 0] * x[:, 1])
    torch.testing.assert_close(predicted, query[:, 0] * query[:, 1], rtol=1e-3, atol=1e-3)


def test_scores_are_cut_off_and_a_constant_statistic_is_harmless() -> None:
    kernel = StandardKernel((2,), limit=3.0)
    x = torch.stack([torch.randn(40), torch.full((40,), 7.0)], dim=1)
    kernel.observe(x)
    assert torch.equal(kernel.scores(torch.tensor([[1e6, 7.0]])), torch.tensor([[3.0, 0.0]]) / 2**0.5)
    assert torch.isfinite(kernel.gram(x)).all()


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="limit is 0"):
        StandardKernel((2,), limit=0.0)
    with pytest.raises(UserError, match="degree is 0"):
        StandardKernel((2,), degree=0)
