"""Pooled over ranks, a step has the gradient of one process with all samples; how much is said to one another."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch
from models import LearntPrior, LinearGaussian
from ranks import Meeting, concatenate, on_ranks, replicas
from test_chunks import TwoLatents
from torch import Tensor

from lightning_alws.chunks import ChunkedJoint
from lightning_alws.errors import UserError
from lightning_alws.feature_ridge import NystromRidge, RandomFeatureRidge
from lightning_alws.generative import GenerativeModel, Sleep
from lightning_alws.kernels import GaussianKernel, MedianKernel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.low_rank import LowRankRidge
from lightning_alws.mean_matching import ReweightedRidge
from lightning_alws.models.ica import IndependentComponents
from lightning_alws.models.neural_dynamics import NeuralDynamics
from lightning_alws.models.neural_process import NeuralProcessModel
from lightning_alws.networks import LinearFeatures
from lightning_alws.objectives import KernelObjective, LogJointError, NaturalParameterError
from lightning_alws.quantile_kernel import QuantileKernel
from lightning_alws.regression import AnnealedRidge, KernelRidge
from lightning_alws.scope import GlobalScope, Network, Scope
from lightning_alws.windows import Windows

DOUBLE = torch.float64
SAMPLES, HELD_OUT, WAKE = 12, 6, 5  # of each rank
features = functools.partial(LinearFeatures, width=2)
# Narrow, so that the Gram matrix of Nyström's centres is well conditioned and gradients are exact to 1e-10.
MEDIAN = functools.partial(MedianKernel, features=features, multiple=0.1)
GAUSSIAN = functools.partial(GaussianKernel, features=features, bandwidth=0.5)
REGRESSIONS: dict[str, Any] = {
    "exact": functools.partial(KernelRidge, kernel=GAUSSIAN, ridge=0.3),
    "exact, intercept, median": functools.partial(KernelRidge, kernel=MEDIAN, ridge=0.3, intercept=True),
    "annealed": functools.partial(AnnealedRidge, kernel=MEDIAN, ridge=0.1),
    "random features": functools.partial(RandomFeatureRidge, kernel=GAUSSIAN, ridge=0.3, count=10),
    "random features, intercept, median": functools.partial(
        RandomFeatureRidge, kernel=MEDIAN, ridge=0.3, count=10, intercept=True
    ),
    "Nyström": functools.partial(NystromRidge, kernel=GAUSSIAN, ridge=0.3, centres=7),
    "Nyström over ranks, intercept, median": functools.partial(
        NystromRidge, kernel=MEDIAN, ridge=0.3, centres=SAMPLES + 3, intercept=True
    ),
    "Nyström, normal scores": functools.partial(
        NystromRidge, kernel=functools.partial(QuantileKernel, features=features), ridge=0.3, centres=9
    ),
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "AL-F": {},
    "centred": {"centring": 1.0},
    "AL-A": {"kernel_objective": LogJointError()},
    "centred vector AL-A": {"kernel_objective": NaturalParameterError(), "centring": 1.0},
}


class Named(TwoLatents):
    """Latents by name, drawn without gradient."""

    def simulate(self, count: int) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            return super().simulate(count)


class Penalised(AmortisedLearning):
    """A learner with a log prior, in no trainer."""

    def penalty(self, penalties: Any) -> Tensor:
        return sum(0.1 * parameter.square().sum() for parameter in self.generative.parameters())  # type: ignore[return-value]


def learner(model: GenerativeModel, **settings: Any) -> Penalised:
    learning = {"sleep_samples": SAMPLES, "held_out": HELD_OUT, "regression": REGRESSIONS["exact"]} | settings
    module = Penalised(model, Learning(**learning)).double()
    module.regression.at_step(0)
    return module


def gradients(module: AmortisedLearning, wake: Tensor) -> dict[str, Tensor]:
    """Of one step, by the parameter's name, and what it logs."""
    logged: dict[str, Tensor] = {}
    module.log = lambda name, value, **options: logged.update({name: value})  # type: ignore[method-assign, assignment]
    module.training_step(wake, 0).backward()
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    assert [name for name, p in trained if p.grad is None] == []
    return {name: p.grad for name, p in trained} | logged  # type: ignore[dict-item]


def drawn(module: AmortisedLearning, rank: int) -> dict[str, Sleep]:
    """A rank's samples, by noise of its own."""
    torch.manual_seed(100 + rank)
    sleep = module._sleep(module.generative, SAMPLES)
    with torch.no_grad():
        return {"sleep": sleep, "held_out": module._sleep(module.generative, HELD_OUT)}


def at_once(module: AmortisedLearning, sleep: Sleep) -> Sleep:
    """The same samples, with a joint that is not computed in chunks."""
    if not isinstance(sleep.joint, ChunkedJoint):
        return sleep
    return Sleep(sleep.z, sleep.x, module.generative.joint(sleep.z, sleep.x, module.direct))


def of_one_process(module: AmortisedLearning, wake: list[Tensor]) -> dict[str, Tensor]:
    """The truth: one process that has all ranks' samples."""
    ranks = len(wake)
    module = copy.deepcopy(module)
    parts = [drawn(module, rank) for rank in range(ranks)]
    module.learning = dataclasses.replace(
        module.learning, sleep_samples=ranks * SAMPLES, held_out=ranks * HELD_OUT, chunk=None
    )

    def draw(count: int, stream: str) -> Sleep:
        every = concatenate([at_once(module, part[stream]) for part in parts])
        assert len(every) == count
        return every

    module.draw = draw  # type: ignore[method-assign, assignment]
    return gradients(module, torch.cat(wake))


def of_ranks(module: AmortisedLearning, wake: list[Tensor]) -> tuple[list[dict[str, Tensor]], Meeting]:
    """The same on each rank, and what they exchanged."""
    copies = replicas(module, len(wake))
    samples = [drawn(one, rank) for rank, one in enumerate(copies)]

    def step(network: Network) -> dict[str, Tensor]:
        own = copies[network.rank]
        own.scope = GlobalScope(network)
        own.draw = lambda count, stream: samples[network.rank][stream]
        return gradients(own, wake[network.rank])

    return on_ranks(len(wake), step)


def assert_pooled(module: AmortisedLearning, wake: list[Tensor], tolerance: float = 1e-10) -> Meeting:
    """DDP's mean of the ranks' gradients is the one process's gradient, and so is what they log."""
    truth = of_one_process(module, wake)
    ranks, meeting = of_ranks(module, wake)
    assert len(truth) >= 2
    assert_close(mean_of(ranks), truth, tolerance)
    return meeting


def mean_of(ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in ranks]).mean(0) for name in ranks[0]}


def assert_close(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    """Relative to the largest gradient of the same group, kernel or model: some are zero but for rounding."""
    assert found.keys() == truth.keys()
    groups = {name.split(".")[0] for name in truth}
    scale = {
        g: max(float(value.abs().max()) for name, value in truth.items() if name.split(".")[0] == g) for g in groups
    }
    for name, expected in truth.items():
        assert float((found[name] - expected).abs().max()) <= tolerance * scale[name.split(".")[0]], name


def batches(model: GenerativeModel, ranks: int) -> list[Tensor]:
    torch.manual_seed(7)
    return [model.sleep(WAKE, model.direct_only).x for _ in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("regression", REGRESSIONS.values(), ids=REGRESSIONS)
def test_gradient_is_that_of_one_process_with_all_samples(regression, objective: dict[str, Any], ranks: int) -> None:
    module = learner(LinearGaussian(), regression=regression, **objective)
    assert_pooled(module, batches(module.generative, ranks))


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "learnt prior": (LearntPrior, {}),
    "direct": (LearntPrior, {"mode": "direct"}),
    "latents by name": (Named, {}),
    "residual": (lambda: IndependentComponents((3,), 2, weight_std=0.5).double(), {}),
    "residual, direct": (lambda: IndependentComponents((3,), 2, weight_std=0.5).double(), {"mode": "direct"}),
    "windows": (lambda: Windows(NeuralDynamics((4, 2)), 1, 1).double(), {}),
    "in chunks": (LinearGaussian, {"chunk": 5}),
    "direct, in chunks": (Named, {"chunk": 5}),
}


@pytest.mark.parametrize("regression", ["exact", "random features"])
@pytest.mark.parametrize(("build", "settings"), MODELS.values(), ids=MODELS)
def test_of_every_kind_of_joint(build, settings: dict[str, Any], regression: str) -> None:
    module = learner(
        build(), regression=REGRESSIONS[regression], kernel_objective=LogJointError(), centring=1.0, **settings
    )
    assert_pooled(module, batches(module.generative, 2))


def test_importance_weights_are_those_of_the_pooled_wake_batch() -> None:
    regression = functools.partial(ReweightedRidge, kernel=GAUSSIAN, ridge=0.3)
    module = learner(LinearGaussian(), regression=regression, **OBJECTIVES["AL-A"])
    assert_pooled(module, batches(module.generative, 2))


def test_low_rank() -> None:
    regression = functools.partial(LowRankRidge, kernel=functools.partial(GaussianKernel, bandwidth=2.0), ridge=0.3)
    module = learner(LinearGaussian(observed_dim=2), regression=regression, centring=1.0)
    assert_pooled(module, batches(module.generative, 2))


def test_batches_of_different_sizes() -> None:
    module = learner(LinearGaussian(), centring=1.0)
    wake = batches(module.generative, 3)
    assert_pooled(module, [wake[0], wake[1][:2], wake[2][:4]])


def test_it_is_not_the_mean_of_the_ranks_own_regressions() -> None:
    """Nor a gradient that is off by a factor: what the tests above would pass if they compared like with like."""
    module = learner(LinearGaussian())
    wake = batches(module.generative, 2)
    truth = of_one_process(module, wake)["generative.weight"]
    own = []
    for rank, one in enumerate(replicas(module, 2)):
        samples = drawn(one, rank)  # type: ignore[arg-type]
        one.draw = lambda count, stream, samples=samples: samples[stream]  # type: ignore[assignment]
        own.append(gradients(one, wake[rank])["generative.weight"])  # type: ignore[arg-type]
    mean = torch.stack(own).mean(0)
    assert float((mean - truth).norm() / truth.norm()) > 0.02


class Unsummed(KernelObjective):
    """An objective that knows nothing of ranks."""

    def __call__(self, weights: Tensor, sleep: Sleep, held_out: Sleep) -> Tensor:
        return weights.square().mean()


def test_what_cannot_be_pooled_is_refused() -> None:
    with pytest.raises(UserError, match="regression_scope is 'all'; give 'rank' or 'global'"):
        learner(LinearGaussian(), regression_scope="all")
    with pytest.raises(UserError, match="'global', but Unsummed sums over the samples of one process; set it to"):
        learner(LinearGaussian(), regression_scope="global", kernel_objective=Unsummed())
    learner(LinearGaussian(), kernel_objective=Unsummed())
    with pytest.raises(UserError, match="'global', but the sleep samples of NeuralProcessModel depend on each"):
        NeuralProcessModel(learning=Learning(regression_scope="global"), event_shape=(8,))


def test_too_many_samples_for_an_exact_regression_are_refused_with_the_alternative() -> None:
    exact = KernelRidge((2,))
    exact.check_pooled(5000, 4)
    with pytest.raises(UserError, match=r"pool 20001 of them.* takes 20000; use RandomFeatureRidge.* at most 6666, or"):
        exact.check_pooled(6667, 3)
    for build in (RandomFeatureRidge, NystromRidge, LowRankRidge):
        build((2,)).check_pooled(10**6, 64)


@pytest.mark.parametrize("intercept", [False, True])
def test_random_features_communicate_nothing_that_grows_with_the_samples(intercept: bool) -> None:
    """D² sums (and with an intercept D and some); R·B observations; one number for each prediction."""
    count, dims = 10, 3
    regression = functools.partial(
        RandomFeatureRidge,
        kernel=functools.partial(GaussianKernel, bandwidth=2.0),
        ridge=0.3,
        count=count,
        intercept=intercept,
    )
    module = learner(LinearGaussian(), regression=regression)
    meeting = of_ranks(module, batches(module.generative, 2))[1]
    predictions = 2 * WAKE
    # In their order: how many rows each batch has, the batches, ΦᵀΦ, whether its factor is valid, the rest.
    sums = [("total", count), ("total", predictions), ("total", 1)] if intercept else []
    assert meeting.calls == [
        ("collect", 1),
        ("collect", WAKE * dims),
        ("total", count**2),
        ("total", 1),
        *sums,
        ("total", predictions),
    ]


def test_exact_regression_communicates_the_observations() -> None:
    module = learner(LinearGaussian())
    meeting = of_ranks(module, batches(module.generative, 2))[1]
    assert meeting.calls == [("collect", 1), ("collect", WAKE * 3), ("collect", SAMPLES * 3), ("total", 2 * WAKE)]


def test_scope_of_one_rank_changes_nothing() -> None:
    rows = torch.randn(6, 2)
    scope = Scope()
    assert scope.sum(rows) is rows
    assert scope.gather(rows) is rows
    assert torch.equal(scope.mean(rows), rows.mean(0))
    assert torch.equal(scope.variance(rows), rows.var(0))


def test_global_scope_sums_gathers_and_takes_the_first_rows() -> None:
    rows = torch.arange(24, dtype=DOUBLE).view(3, 4, 2)

    def work(network: Network) -> dict[str, Tensor]:
        scope, own = GlobalScope(network), rows[network.rank]
        return {
            "gather": scope.gather(own),
            "uneven": scope.gather(own[: network.rank + 1], even=False),
            "mean": scope.mean(own),
            "variance": scope.variance(own),
            "agree": torch.tensor(
                [scope.agree(network.rank < 3, own.device), scope.agree(network.rank < 2, own.device)]
            ),
        } | {f"head {count}": scope.head(own, count) for count in (1, 4, 7, 12, 20)}

    flat = rows.flatten(0, 1)
    for found in on_ranks(3, work)[0]:
        assert torch.equal(found["gather"], flat)
        assert torch.equal(found["uneven"], flat[[0, 4, 5, 8, 9, 10]])
        torch.testing.assert_close(found["mean"], flat.mean(0))
        torch.testing.assert_close(found["variance"], flat.var(0))
        assert found["agree"].tolist() == [True, False]
        for count in (1, 4, 7, 12, 20):
            assert torch.equal(found[f"head {count}"], flat[:count])


def test_gradient_of_a_sum_is_its_adjoint() -> None:
    """Of Σ_r L_r with L_r = c_r · Σ_s a_s: every rank's summand has the gradient Σ_r c_r; alike, R times its own c."""

    def work(network: Network) -> list[float]:
        own = torch.tensor(1.0 + network.rank, dtype=DOUBLE, requires_grad=True)
        scope = GlobalScope(network)
        different = torch.autograd.grad((network.rank + 1.0) * scope.sum(own), own)[0]
        alike = torch.autograd.grad(5.0 * scope.sum(own, alike=True), own)[0]
        return [float(scope.sum(own).detach()), float(different), float(alike)]

    assert on_ranks(3, work)[0] == [[6.0, 6.0, 15.0]] * 3
