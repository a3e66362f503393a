"""Every kernel with every regression: the exact regression's weights, or a refusal; never others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor

import lightning_alws.mean_matching
import lightning_alws.quantile_kernel
import lightning_alws.set_kernels
import lightning_alws.standard_kernel
from lightning_alws.errors import UserError
from lightning_alws.feature_ridge import NystromRidge, RandomFeatureRidge
from lightning_alws.kernels import GaussianKernel, Kernel, PolynomialKernel
from lightning_alws.low_rank import LowRankRidge
from lightning_alws.networks import MLPFeatures
from lightning_alws.regression import AnnealedRidge, KernelRidge, freeze
from lightning_alws.scope import GlobalScope

N, DOUBLE = 24, torch.float64


BASES = {"Kernel", "RadialKernel", "ElementKernel", "FeatureRidge"}  # of which none is ever used by itself


def kinds(base: type) -> set[type]:
    """The application's own classes from one down."""
    below = {base}.union(*(kinds(one) for one in base.__subclasses__()))
    return {one for one in below if one.__name__ not in BASES and one.__module__.startswith("lightning_alws")}


KERNELS = {kind.__name__: kind for kind in sorted(kinds(Kernel), key=str)}
EXACT: dict[str, Callable[..., KernelRidge]] = {
    "AnnealedRidge": functools.partial(AnnealedRidge, start=0.5, steps=1),
    "ReweightedRidge": lightning_alws.mean_matching.ReweightedRidge,  # without a wake batch
    "LowRankRidge": functools.partial(LowRankRidge, tolerance=1e-13),
    "NystromRidge": functools.partial(NystromRidge, centres=N),
    "RandomFeatureRidge": functools.partial(RandomFeatureRidge, count=2000, orthogonal=False, redraw=False),
}
NO_SPECTRUM = {"PolynomialKernel", "QuantileKernel", "SetGaussianKernel", "StandardKernel"}
NOT_ONE = {"PolynomialKernel", "StandardKernel"}  # on the diagonal
REFUSED = {("RandomFeatureRidge", kernel) for kernel in NO_SPECTRUM} | {("LowRankRidge", kernel) for kernel in NOT_ONE}
# Set by the jitter, and by the number of features: a kernel of something else is off by half and more.
TOLERANCES = {"NystromRidge": 1e-6, "RandomFeatureRidge": 0.2}


def test_every_regression_is_here() -> None:
    assert {kind.__name__ for kind in kinds(KernelRidge)} == {*EXACT, "KernelRidge"}


def made(build: Callable[..., KernelRidge], kernel: str, x: Tensor, features: bool, intercept: bool) -> KernelRidge:
    def kernel_of(shape: tuple[int, ...]) -> Kernel:
        network: Any = functools.partial(MLPFeatures, hidden=[5], width=2) if features else None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return KERNELS[kernel](shape, features=network)

    regression = build(tuple(x.shape[1:]), kernel_of, ridge=0.5, intercept=intercept).double()
    regression.initialise(x)
    freeze(regression)
    return regression


def observations(kernel: str) -> tuple[Tensor, Tensor]:
    """Sleep and wake; sets have as many elements as these have dimensions, so that no shape gives a mistake away."""
    shape = (2, 2) if kernel.startswith("Set") else (2,)
    draws = torch.Generator().manual_seed(5)
    x, query = (torch.randn(count, *shape, generator=draws, dtype=DOUBLE) for count in (N, 7))
    return x.exp() - 1, query.exp() - 1


def close(name: str, ours: Tensor, exact: Tensor) -> None:
    error = float((ours - exact).norm() / exact.norm())
    assert error < TOLERANCES.get(name, 1e-9), f"a relative error of {error}"


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", EXACT)
def test_weights_are_those_of_the_exact_regression(name: str, kernel: str, features: bool, intercept: bool) -> None:
    x, query = observations(kernel)
    exact = made(KernelRidge, kernel, x, features, intercept).fit(x).weights(query)

    def ours() -> Tensor:
        return made(EXACT[name], kernel, x, features, intercept).fit(x).weights(query)

    if (name, kernel) in REFUSED:
        with pytest.raises(UserError, match=f"{name}, .*{kernel}"):
            ours()
    else:
        close(name, ours(), exact)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["KernelRidge", *EXACT])
def test_pooled_over_two_processes(name: str, kernel: str) -> None:
    """The rows of both are those of one process with all samples, whatever a kernel looks at first."""
    if (name, kernel) in REFUSED:
        return
    x, query = observations(kernel)
    build = {"KernelRidge": KernelRidge, **EXACT}[name]
    whole = made(build, kernel, x, True, True).fit(x).weights(query)
    parts, regressions = x.chunk(2), [made(build, kernel, x, True, True) for _ in range(2)]

    def work(network: Any) -> Tensor:
        regression = regressions[network.rank]
        return regression.fit_pooled(parts[network.rank], query, GlobalScope(network)).weights(query)

    if name == "ReweightedRidge":  # by the wake batch, as in one process
        whole = made(build, kernel, x, True, True).fit(x, query).weights(query)
    close("KernelRidge", torch.cat(on_ranks(2, work)[0]), whole)


def test_random_features_refuse_a_kernel_that_bends_its_features() -> None:
    class Bent(GaussianKernel):
        def cross(self, features: Tensor, query: Tensor) -> Tensor:
            return super().cross(features**3, query**3)

    with pytest.raises(UserError, match="RandomFeatureRidge, but Bent"):
        RandomFeatureRidge((2,), Bent)


def test_low_rank_finds_a_diagonal_that_is_one_for_some_samples_only() -> None:
    """k(0, 0) = 1 for the polynomial kernel, and the first image may be black."""
    x = torch.cat([torch.zeros(3, 2), torch.randn(30, 2)])
    regression = LowRankRidge((2,), PolynomialKernel)
    freeze(regression)
    with pytest.raises(UserError, match="not 1 on the diagonal"):
        regression.fit(x)
