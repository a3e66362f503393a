"""The cost model counts what ranks really say to one another, and knows what one process costs."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import pytest
from models import LinearGaussian
from test_scope import SAMPLES, WAKE, batches, learner, of_ranks

from lightning_alws.feature_ridge import RandomFeatureRidge
from lightning_alws.kernels import GaussianKernel
from lightning_alws.regression import KernelRidge

SOURCE = Path(__file__).parents[1] / "benchmarks" / "scaling.py"
specification = importlib.util.spec_from_file_location("scaling", SOURCE)
assert specification is not None
assert specification.loader is not None
scaling = sys.modules["scaling"] = importlib.util.module_from_spec(specification)
specification.loader.exec_module(scaling)
FEATURES = 10
FORMS = {"exact": KernelRidge, "random features": functools.partial(RandomFeatureRidge, count=FEATURES)}


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_communicated_bytes_are_those_of_a_step(form: str, ranks: int) -> None:
    module = learner(
        LinearGaussian(),
        regression=functools.partial(FORMS[form], kernel=functools.partial(GaussianKernel, bandwidth=2.0)),
    )
    calls = [call for call in of_ranks(module, batches(module.generative, ranks))[1].calls if call[1] > 1]
    ring = (ranks - 1) / ranks  # of what is there in the end, each rank passes on so much
    expected = sum(4 * ring * (ranks * numbers if name == "collect" else 2 * numbers) for name, numbers in calls)
    cost = scaling.cost(ranks, SAMPLES, WAKE, "global", form, 0.0, 0, FEATURES, pixels=3)
    assert cost.communicated == pytest.approx(expected)


def test_ranks_by_themselves_exchange_the_gradient_alone() -> None:
    assert scaling.cost(8, 100, 10, "rank", "exact", 1e6, 1000).communicated == pytest.approx(2 * 7 / 8 * 4 * 1000)
    one, eight = (scaling.cost(ranks, 100, 10, "rank", "exact", 1e6, 1000) for ranks in (1, 8))
    assert one.communicated == one.collectives == 0
    assert (one.network, one.products, one.cholesky) == (eight.network, eight.products, eight.cholesky)


def test_exact_pooled_samples_cost_the_cube_of_all() -> None:
    one, four = (scaling.cost(ranks, 100, 10, "global", "exact", 1e6, 1000) for ranks in (1, 4))
    assert four.cholesky == pytest.approx(4**3 * one.cholesky)
    assert four.network == one.network
    by_features = [scaling.cost(ranks, 100, 10, "global", "random features", 1e6, 1000).cholesky for ranks in (1, 4)]
    assert by_features[0] == by_features[1]
