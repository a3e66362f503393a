"""Ridge regression against scikit-learn's, its adjoint against autograd and finite differences, and its failures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as Oracle

from lightning_alws.errors import UserError
from lightning_alws.kernels import GaussianKernel
from lightning_alws.networks import MLPFeatures
from lightning_alws.regression import AnnealedRidge, KernelRidge, freeze, name_non_finite


def problem(count: int = 40, queries: int = 7, targets: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return tuple(torch.randn(rows, columns, generator=draw, dtype=torch.float64)
                 for rows, columns in ((count, 4), (queries, 4), (count, targets)))  # fmt: skip


def ridge(value: float = 0.05, **options) -> KernelRidge:
    return KernelRidge((4,), lambda shape: GaussianKernel(shape, bandwidth=1.3), ridge=value, **options).double()


def test_weights_are_scikit_learns() -> None:
    x, query, y = problem()
    regression = ridge()
    prediction = regression.fit(x).weights(query).T @ y
    gamma = float(0.5 * torch.exp(-2 * regression.kernel.log_bandwidth))
    oracle = Oracle(alpha=float(regression.ridge), kernel="rbf", gamma=gamma).fit(x, y)
    np.testing.assert_allclose(prediction.detach(), oracle.predict(query), rtol=1e-10, atol=1e-12)


def test_intercept_is_an_unpenalised_constant() -> None:
    """Against the block system [[A, 1], [1ᵀ, 0]] whose solution is ridge regression with a free constant."""
    x, query, y = problem()
    regression = ridge(intercept=True)
    weights = regression.fit(x).weights(query).detach()
    gram = regression.kernel.gram(x) + regression.ridge * torch.eye(len(x), dtype=x.dtype)
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    block = torch.cat([torch.cat([gram, ones], 1), torch.cat([ones.T, torch.zeros(1, 1, dtype=x.dtype)], 1)])
    solution = torch.linalg.solve(block, torch.cat([y, torch.zeros(1, y.shape[1], dtype=x.dtype)]))
    reference = regression.kernel.cross(x, query).T @ solution[:-1] + solution[-1]
    torch.testing.assert_close(weights.T @ y, reference.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(weights.sum(0), torch.ones(len(query), dtype=x.dtype))
    far = regression.fit(x).weights(query + 1e3).detach()
    # Far from all samples every query is predicted alike, by the constant.
    torch.testing.assert_close(far[:, :1].expand_as(far), far)


@pytest.mark.parametrize("intercept", [False, True])
def test_kernel_gradient_matches_finite_differences(intercept: bool) -> None:
    x, query, y = problem(count=12, queries=4)
    regression = KernelRidge(
        (4,),
        lambda shape: GaussianKernel(shape, features=lambda s: MLPFeatures(s, [5], 3), bandwidth=0.7),
        ridge=0.1,
        intercept=intercept,
    ).double()
    parameters = dict(regression.named_parameters())
    names = list(parameters)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        def inside(module: KernelRidge) -> torch.Tensor:
            return (module.fit(x).weights(query).T @ y).square().sum()

        named = {f"module.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(_Call(regression, inside), named, ())

    assert torch.autograd.gradcheck(loss, [parameters[name].detach().requires_grad_() for name in names], atol=1e-6)


class _Call(torch.nn.Module):
    def __init__(self, module: torch.nn.Module, function) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self) -> torch.Tensor:
        return self.function(self.module)


def test_implicit_adjoint_is_autograds_through_the_factorisation() -> None:
    x, query, y = problem()
    regression = ridge()
    ours = (regression.fit(x).weights(query).T @ y).square().sum()
    gram = regression.kernel.gram(x) + regression.ridge * torch.eye(len(x), dtype=x.dtype)
    plain = (torch.cholesky_solve(regression.kernel.cross(x, query), torch.linalg.cholesky(gram)).T @ y).square().sum()
    parameters = list(regression.parameters())
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_float64_is_the_last_resort() -> None:
    """A Gram matrix that float32 cannot factorise even with the ridge raised a thousandfold, float64 can."""
    x = torch.randn(60, 2)
    regression = KernelRidge((2,), lambda shape: GaussianKernel(shape, bandwidth=50.0), ridge=1e-11)
    fitted = regression.fit(x)
    assert fitted.failure is None
    assert fitted.factor.lower.dtype == torch.float64
    assert fitted.factor.jitter == 0
    exact = regression._regularised(x.double())
    reconstructed = fitted.factor.lower @ fitted.factor.lower.T
    torch.testing.assert_close(reconstructed, exact, rtol=0, atol=1e-13)
    assert fitted.weights(torch.randn(3, 2)).dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_samples_are_named(bad: float) -> None:
    x, _, _ = problem()
    x[3, 1] = bad
    failure = ridge().fit(x).failure
    assert failure is not None
    assert "sleep samples hold 1 non-finite of 160" in failure


def test_names_the_first_bad_tensor() -> None:
    good, bad = torch.zeros(3), torch.tensor([float("nan"), 1.0])
    assert name_non_finite(first=good, second_one=bad) == "second one hold 1 non-finite of 2 values"
    assert name_non_finite(first=good) is None


@pytest.mark.parametrize("value", [0.0, -0.01, float("nan")])
def test_ridge_must_be_positive(value: float) -> None:
    with pytest.raises(UserError, match="regression.ridge is"):
        ridge(value)


def test_annealed_ridge_falls_geometrically_and_depends_on_the_step_alone() -> None:
    regression = AnnealedRidge(
        (4,), lambda shape: GaussianKernel(shape, bandwidth=1.0), ridge=0.01, start=1.0, steps=100
    )
    seen = {}
    for step in (0, 50, 100, 500, 50):
        regression.at_step(step)
        seen[step] = float(regression.ridge.detach())
    assert seen == pytest.approx({0: 1.0, 50: 0.1, 100: 0.01, 500: 0.01}, rel=1e-5)
    with pytest.raises(UserError, match="regression.start is -1"):
        AnnealedRidge((4,), start=-1.0)


def test_frozen_kernel_has_buffers_only_and_the_same_weights() -> None:
    x, query, _ = problem()
    regression = ridge()
    before = regression.fit(x).weights(query).detach()
    state = regression.state_dict()
    freeze(regression)
    assert list(regression.parameters()) == []
    assert regression.state_dict().keys() == state.keys()
    torch.testing.assert_close(regression.fit(x).weights(query), before)
