"""Every penalty against scipy's or torch's density, whose difference must be a constant; gradients; names; YAML."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from jsonargparse import ArgumentParser
from scipy import stats
from torch import Tensor, nn

import lightning_alws.penalties as penalties
from lightning_alws.errors import UserError
from lightning_alws.penalties import (
    DirichletPenalty,
    GammaPenalty,
    GradualPenalty,
    InverseWishartPenalty,
    LogNormalPenalty,
    NormalPenalty,
    Penalty,
)
from lightning_alws.priors import GaussianMixturePrior

K, D = 3, 2


class Model(nn.Module):
    """One tensor, as it comes."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.double())


def positive() -> Tensor:
    return torch.randn(K, D, dtype=torch.float64).exp()


def covariances() -> Tensor:
    factor = torch.randn(K, D, D, dtype=torch.float64)
    return factor @ factor.mT + 0.1 * torch.eye(D)


def simplex() -> Tensor:
    return torch.randn(2, K, dtype=torch.float64).softmax(-1)


CASES: dict[str, tuple[Penalty, Callable[[], Tensor], Callable[[Tensor], float]]] = {
    "NormalPenalty": (
        NormalPenalty("value", scale=3.0, mean=-0.5),
        lambda: torch.randn(K, D, dtype=torch.float64),
        lambda v: stats.norm(-0.5, 3).logpdf(v).sum(),
    ),
    "LogNormalPenalty": (
        LogNormalPenalty("value", location=0.7, scale=0.4),
        positive,
        lambda v: stats.norm(0.7, 0.4).logpdf(v.log()).sum(),
    ),
    "GammaPenalty": (
        GammaPenalty("value", shape=0.9, rate=0.3),
        positive,
        lambda v: stats.gamma(0.9, scale=1 / 0.3).logpdf(v).sum(),
    ),
    "DirichletPenalty": (
        DirichletPenalty("value", concentration=2.5),
        lambda: simplex().log(),
        lambda v: sum(stats.dirichlet([2.5] * K).logpdf(row.exp().numpy()) for row in v),
    ),
    "DirichletPenalty-probabilities": (
        DirichletPenalty("value", concentration=0.5, logarithmic=False),
        simplex,
        lambda v: sum(stats.dirichlet([0.5] * K).logpdf(row.numpy()) for row in v),
    ),
    "InverseWishartPenalty": (
        InverseWishartPenalty("value", degrees=2.0, scale=0.02),
        covariances,
        lambda v: sum(stats.invwishart(2, 0.02 * torch.eye(D).numpy()).logpdf(matrix.numpy()) for matrix in v),
    ),
    "GradualPenalty": (
        GradualPenalty(NormalPenalty("value", scale=3.0), after=5),
        lambda: torch.randn(K, D, dtype=torch.float64),
        lambda v: stats.norm(0, 3).logpdf(v).sum(),
    ),
}
every_case = pytest.mark.parametrize(("penalty", "draw", "log_density"), CASES.values(), ids=CASES.keys())


def test_every_penalty_is_under_test() -> None:
    defined = {thing.__name__ for thing in vars(penalties).values() if isinstance(thing, type)} - {"UserError"}
    defined = {name for name in defined if issubclass(getattr(penalties, name, object), Penalty)} - {"Penalty"}
    assert {type(penalty).__name__ for penalty, _, _ in CASES.values()} == defined


@every_case
def test_it_is_the_negative_log_density_up_to_a_constant(penalty, draw, log_density) -> None:
    """Differences between draws are those of scipy's density."""
    values = [draw() for _ in range(6)]
    ours = torch.stack([penalty(Model(value)).detach() for value in values])
    theirs = -torch.tensor([float(log_density(value)) for value in values], dtype=torch.float64)
    assert ours.std() > 0.01
    torch.testing.assert_close(ours - ours[0], theirs - theirs[0], rtol=1e-9, atol=1e-9)


@every_case
def test_gradient_is_that_of_finite_differences(penalty, draw, log_density) -> None:
    def symmetric(value: Tensor) -> Tensor:
        is_matrix = isinstance(penalty, InverseWishartPenalty)
        return penalty.negative_log_density(0.5 * (value + value.mT) if is_matrix else value)

    value = draw().requires_grad_()
    assert torch.autograd.gradcheck(symmetric, value)
    model = Model(value.detach())
    penalty(model).backward()
    assert model.value.grad.isfinite().all()
    assert model.value.grad.any()


@every_case
def test_single_precision_stays_single_and_is_close(penalty, draw, log_density) -> None:
    model = Model(draw())
    double = penalty(model)
    single = penalty(model.float())
    assert single.dtype == torch.float32
    assert single.shape == ()
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@every_case
def test_a_nan_gives_a_nan_and_no_exception(penalty, draw, log_density) -> None:
    value = draw()
    value.view(-1)[0] = math.nan
    model = Model(value)
    loss = penalty(model)
    assert loss.isnan()
    loss.backward()


def test_normalisation_is_the_dirichlets_own() -> None:
    """Logits, log-probabilities and probabilities of the same distribution have the same penalty."""
    logits = torch.randn(K)
    by = [
        DirichletPenalty("value", -9.0)(Model(logits)),
        DirichletPenalty("value", -9.0)(Model(logits.log_softmax(-1))),
        DirichletPenalty("value", -9.0, logarithmic=False)(Model(logits.softmax(-1))),
    ]
    torch.testing.assert_close(by[0], 10 * logits.double().log_softmax(-1).sum())
    torch.testing.assert_close(by[1], by[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(by[2], by[0], rtol=1e-6, atol=1e-6)


def test_published_pinwheel_penalties_on_the_mixture() -> None:
    """10 Σ log π + ‖μ‖²/(2·3²) + Σ(2.5 log det Σ + 0.01 tr Σ⁻¹), through properties, reaching every parameter."""
    prior = GaussianMixturePrior(10, 2).double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model = nn.ModuleDict({"prior": prior})
    penalty = [
        DirichletPenalty("prior.log_probabilities", concentration=-9.0),
        NormalPenalty("prior.means", scale=3.0),
        InverseWishartPenalty("prior.covariances", degrees=2.0, scale=0.02),
    ]
    total = sum(one(model) for one in penalty)
    covariance = prior.covariances
    published = (
        10 * prior.component.logits.log_softmax(0).sum()
        + prior.means.square().sum() / 18
        + (2.5 * covariance.logdet() + 0.01 * covariance.inverse().diagonal(dim1=1, dim2=2).sum(1)).sum()
    )
    torch.testing.assert_close(total, published)
    leaves = list(prior.parameters())
    ours, theirs = (torch.autograd.grad(value, leaves) for value in (total, published))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("after", "steps", "expected"),
    [(0, 0, [1, 1, 1, 1]), (2, 0, [0, 1, 1, 1]), (1, 4, [0, 0.25, 0.5, 1]), (0, 4, [0, 0.5, 0.75, 1])],
)
def test_a_gradual_penalty_has_the_strength_of_its_step(after: int, steps: int, expected: list[float]) -> None:
    """In steps 0, 2, 3, 7; a penalty that is gradual already is so twice, any other is in full from the first step."""
    penalty = NormalPenalty("value", scale=1.0)
    gradual = GradualPenalty(penalty, after, steps)
    assert [gradual.strength(step) for step in (0, 2, 3, 7)] == expected
    assert [GradualPenalty(gradual).strength(step) for step in (0, 2, 3, 7)] == expected
    assert penalty.strength(0) == 1


def test_gamma_is_bounded_at_zero_by_its_offset() -> None:
    value = GammaPenalty("value", shape=0.9, rate=0.3)(Model(torch.zeros(2)))
    torch.testing.assert_close(value.item(), 2 * 0.1 * math.log(1e-15))


class Nested(nn.Module):
    """A module within a module, with a property and one that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Model(torch.ones(2))
        self.layers = nn.Sequential(nn.Linear(2, 1))

    @property
    def scale(self) -> Tensor:
        return self.inner.value.exp()

    @property
    def count(self) -> int:
        return 3


@pytest.mark.parametrize("name", ["scale", "inner.value", "layers.0.weight"])
def test_names_reach_parameters_and_properties(name: str) -> None:
    assert NormalPenalty(name, scale=1.0)(Nested()).requires_grad


@pytest.mark.parametrize("name", ["", "inner", "inner.values", "count", "scales.value"])
def test_names_that_do_not_exist_list_those_that_do(name: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}'.*Nested.*inner\.value.*layers\.0\.weight.*scale"):
        NormalPenalty(name, scale=1.0)(Nested())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: NormalPenalty("value", scale=0.0), "NormalPenalty.scale is 0.0, for value"),
        (lambda: LogNormalPenalty("value", 0.0, scale=-1.0), "LogNormalPenalty.scale is -1"),
        (lambda: GammaPenalty("value", shape=0.0, rate=1.0), "GammaPenalty.shape is 0"),
        (lambda: GammaPenalty("value", shape=1.0, rate=math.inf), "GammaPenalty.rate is inf"),
        (lambda: DirichletPenalty("value", math.nan), "concentration is nan"),
        (lambda: InverseWishartPenalty("value", 2.0, scale=0.0), "InverseWishartPenalty.scale is 0"),
        (lambda: GradualPenalty(NormalPenalty("value", 1.0), after=-1), "GradualPenalty.after is -1, for value"),
        (lambda: GradualPenalty(NormalPenalty("value", 1.0), steps=-1), "GradualPenalty.steps is -1"),
        (lambda: LogNormalPenalty("value", 0.0, 1.0)(Model(torch.tensor([1.0, -2.0]))), "value, which holds -2 "),
        (lambda: GammaPenalty("value", 1.0, 1.0)(Model(torch.tensor([1.0, -2.0]))), "value, which holds -2 "),
        (lambda: DirichletPenalty("value", 1.0, False)(Model(torch.tensor([1.0, 0.0]))), "value, which holds 0 "),
        (lambda: InverseWishartPenalty("value", 2.0, 1.0)(Model(torch.ones(2, 3))), r"shape \(2, 3\)"),
        (lambda: InverseWishartPenalty("value", 2.0, 1.0)(Model(-torch.eye(2))), "not positive definite"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()


def test_chosen_in_yaml_by_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--penalties", type=list[Penalty])
    for name in ("NormalPenalty", "lightning_alws.penalties.NormalPenalty"):
        text = f"[{{class_path: {name}, init_args: {{parameter: value, scale: 2.0}}}}]"
        (penalty,) = parser.instantiate_classes(parser.parse_args([f"--penalties={text}"])).penalties
        assert isinstance(penalty, NormalPenalty)
        assert (penalty.parameter, penalty.mean, penalty.scale) == ("value", 0.0, 2.0)


def test_a_gradual_penalty_in_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--penalties", type=list[Penalty])
    inner = "{class_path: NormalPenalty, init_args: {parameter: value, scale: 2.0}}"
    text = f"[{{class_path: GradualPenalty, init_args: {{after: 3, penalty: {inner}}}}}]"
    (penalty,) = parser.instantiate_classes(parser.parse_args([f"--penalties={text}"])).penalties
    assert isinstance(penalty.penalty, NormalPenalty)
    assert (penalty.parameter, penalty.after, penalty.steps) == ("value", 3, 0)
