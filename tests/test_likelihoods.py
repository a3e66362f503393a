"""The contract of every likelihood against torch.distributions, and the plug-in expectation against a double sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

import lightning_alws.likelihoods as likelihoods
from lightning_alws.errors import UserError
from lightning_alws.likelihoods import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Gaussian,
    Likelihood,
    LogNormal,
    Poisson,
    SpectralGaussian,
)
from lightning_alws.likelihoods.discrete import coins

N, B, EVENT, CLASSES = 6, 4, (1, 2, 3), 5


@dataclass
class Case:
    """A likelihood and torch's distribution, both as functions of the same leaves, and B observations."""

    leaves: list[Tensor]
    likelihood: Callable[..., Likelihood]
    reference: Callable[..., Any]
    x: Tensor

    def build(self) -> tuple[Likelihood, Any]:
        return self.likelihood(*self.leaves), self.reference(*self.leaves)


def leaf(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return (scale * torch.randn(shape, dtype=torch.float64) + shift).requires_grad_()


def bernoulli() -> Case:
    x = torch.rand(B, *EVENT).round().double()
    return Case([leaf(N, *EVENT)], Bernoulli, lambda logits: torch.distributions.Bernoulli(logits=logits), x)


def bernoulli_of_means() -> Case:
    def likelihood(mean: Tensor) -> Bernoulli:
        return Bernoulli.of_mean(mean)

    mean = (0.01 + 0.98 * torch.rand(N, *EVENT, dtype=torch.float64)).requires_grad_()
    return Case([mean], likelihood, torch.distributions.Bernoulli, torch.rand(B, *EVENT).round().double())


def normal(mean: Tensor, log_scale: Tensor) -> Distribution:
    return torch.distributions.Normal(mean, log_scale.exp())


def log_normal(location: Tensor, log_scale: Tensor) -> Distribution:
    return torch.distributions.LogNormal(location, log_scale.exp())


def gaussian() -> Case:
    return Case([leaf(N, *EVENT), leaf(shift=-0.7)], Gaussian, normal, leaf(B, *EVENT).detach())


def diagonal_gaussian(*shape: int) -> Callable[[], Case]:
    return lambda: Case(
        [leaf(N, *EVENT), leaf(*shape, scale=0.4, shift=-0.5)], DiagonalGaussian, normal, leaf(B, *EVENT).detach()
    )


def log_normal_case(*shape: int) -> Callable[[], Case]:
    return lambda: Case(
        [leaf(N, *EVENT, scale=0.5), leaf(*shape, scale=0.2, shift=-0.8)],
        LogNormal,
        log_normal,
        leaf(B, *EVENT).detach().exp(),
    )


def poisson() -> Case:
    def reference(log_rate: Tensor) -> Distribution:
        return torch.distributions.Poisson(log_rate.exp())

    return Case([leaf(N, *EVENT, shift=0.5)], Poisson, reference, torch.randint(0, 7, (B, *EVENT)).double())


def categorical(dtype: torch.dtype) -> Callable[[], Case]:
    return lambda: Case(
        [leaf(N, *EVENT, CLASSES)],
        Categorical,
        lambda logits: torch.distributions.Categorical(logits=logits),
        torch.randint(0, CLASSES, (B, *EVENT)).to(dtype),
    )


class NormalOfImages:
    """torch's multivariate normal with the interface of its independent laws: one number an event, shape (..., 1)."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.law = torch.distributions.MultivariateNormal(mean, covariance)
        self.mean = mean.unflatten(1, EVENT)
        self.variance = covariance.diagonal(dim1=1, dim2=2).unflatten(1, EVENT)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.law.log_prob(x.flatten(-len(EVENT)))[:, None]


BAND = torch.tensor([0, 0, 1, 2])  # two directions, one, and the rest


def spectral_gaussian(band: Tensor = BAND) -> Case:
    directions, _ = torch.linalg.qr(torch.randn(math.prod(EVENT), 3, dtype=torch.float64))
    centre = torch.randn(EVENT, dtype=torch.float64)

    def likelihood(log_gain: Tensor, log_scale: Tensor) -> SpectralGaussian:
        return SpectralGaussian(log_gain, log_scale, band, centre, directions)

    def reference(log_gain: Tensor, log_scale: Tensor) -> NormalOfImages:
        variance = (2 * (log_scale + log_gain[:, band])).exp()
        inside = directions * variance[:, None, :-1] @ directions.T
        outside = variance[:, -1, None, None] * (torch.eye(len(directions)).double() - directions @ directions.T)
        return NormalOfImages(centre.flatten().expand(N, -1), inside + outside)

    leaves = [leaf(N, int(band.max()) + 1, scale=0.4), leaf(4, scale=0.5, shift=-0.5)]
    return Case(leaves, likelihood, reference, leaf(B, *EVENT).detach())


CASES = {
    "Bernoulli": bernoulli,
    "Bernoulli-means": bernoulli_of_means,
    "Gaussian": gaussian,
    "DiagonalGaussian-rows": diagonal_gaussian(N, *EVENT),
    "DiagonalGaussian-shared": diagonal_gaussian(*EVENT),
    "DiagonalGaussian-scalar": diagonal_gaussian(),
    "LogNormal-rows": log_normal_case(N, *EVENT),
    "LogNormal-shared": log_normal_case(*EVENT),
    "Poisson": poisson,
    "SpectralGaussian": spectral_gaussian,
    "Categorical-float": categorical(torch.float64),
    "Categorical-int": categorical(torch.int64),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_every_likelihood_is_under_contract() -> None:
    defined = {
        name
        for name in likelihoods.__all__
        if isinstance(thing := getattr(likelihoods, name), type)
        and issubclass(thing, Likelihood)
        and thing.exponential_family
    }
    assert {type(case().build()[0]).__name__ for case in CASES.values()} == defined - {"Likelihood"}


@every_case
def test_log_prob_and_its_gradient_are_those_of_torch_distributions(case) -> None:
    case = case()
    likelihood, reference = case.build()
    x = likelihood.sample()
    ours, theirs = likelihood.log_prob(x), reference.log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    compare_gradients(case, (torch.randn(N).double() * torch.stack([ours, theirs])).sum(1))


@every_case
def test_log_prob_is_the_exponential_familys(case) -> None:
    """⟨η, S⟩ − Ψ + log h, which subclasses may compute in another order."""
    likelihood, _ = case().build()
    x = likelihood.sample()
    torch.testing.assert_close(Likelihood.log_prob(likelihood, x), likelihood.log_prob(x), rtol=1e-10, atol=1e-10)


@every_case
def test_expectation_and_its_gradient_are_those_of_the_double_sum(case) -> None:
    case = case()
    likelihood, reference = case.build()
    weights = torch.randn(N, B, dtype=torch.float64)  # signed, and not summing to one
    pairs = torch.stack([reference.log_prob(one).flatten(1).sum(1) for one in case.x], dim=1)
    ours, theirs = likelihood.expectation(weights, case.x), (weights * pairs).sum(0)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    compare_gradients(case, (torch.randn(B).double() * torch.stack([ours, theirs])).sum(1))


def compare_gradients(case: Case, both: Tensor) -> None:
    ours, theirs = (torch.autograd.grad(value, case.leaves, retain_graph=True) for value in both)
    assert all(gradient.abs().max() > 0 for gradient in ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@every_case
def test_expectation_differentiates_in_the_weights(case) -> None:
    """∂Ĵ(x_b)/∂W_nb = log p(x_b|z_n): what the kernel's training goes through."""
    case = case()
    likelihood, reference = case.build()
    weights = torch.randn(N, B, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(likelihood.expectation(weights, case.x).sum(), weights)
    pairs = torch.stack([reference.log_prob(one).flatten(1).sum(1) for one in case.x], dim=1)
    torch.testing.assert_close(gradient, pairs, rtol=1e-10, atol=1e-10)


@every_case
def test_slices_are_those_of_the_distribution(case) -> None:
    case = case()
    likelihood, _ = case.build()
    part, x = likelihood[1:4], likelihood.sample()
    torch.testing.assert_close(part.natural_parameters, likelihood.natural_parameters[1:4])
    torch.testing.assert_close(part.varying_parameters, likelihood.varying_parameters[1:4])
    torch.testing.assert_close(part.log_normaliser, likelihood.log_normaliser[1:4])
    torch.testing.assert_close(part.log_prob(x[1:4]), likelihood.log_prob(x)[1:4])
    assert part.mean.shape == part.sample().shape == (3, *EVENT)


@every_case
def test_detach_changes_no_value_and_leaves_no_gradient(case) -> None:
    case = case()
    likelihood, _ = case.build()
    detached = likelihood.detach()
    weights = torch.randn(N, B, dtype=torch.float64)
    torch.testing.assert_close(detached.expectation(weights, case.x), likelihood.expectation(weights, case.x))
    for value in (detached.natural_parameters, detached.log_normaliser, detached.mean):
        assert not value.requires_grad


@every_case
def test_map_reaches_rows_and_shared_tensors_apart(case) -> None:
    """Rows doubled, as when the samples of two processes are joined: shared tensors must not be."""
    likelihood, _ = case().build()
    twice = likelihood.map(lambda tensor: torch.cat([tensor, tensor]), lambda tensor: tensor)
    torch.testing.assert_close(twice.natural_parameters, likelihood.natural_parameters.repeat(2, 1))


@every_case
def test_sample_has_the_moments_of_the_distribution(case) -> None:
    likelihood, reference = case().build()
    draws = torch.stack([likelihood.sample() for _ in range(4000)])
    assert draws.shape[1:] == (N, *EVENT)
    assert draws.dtype == torch.float64
    assert not draws.requires_grad
    if not isinstance(likelihood, Categorical):  # torch knows no mean of an index
        torch.testing.assert_close(likelihood.mean, reference.mean)
    mean = likelihood.mean.detach()
    assert ((draws.mean(0) - mean).abs() < 5 * draws.std(0) / 4000**0.5 + 1e-12).all()
    if not isinstance(likelihood, Categorical):
        fourth = (draws - mean).pow(4).mean(0)
        standard_error = ((fourth - reference.variance.square()).clamp_min(0) / 4000).sqrt()
        assert ((draws.var(0) - reference.variance).abs() < 6 * standard_error + 1e-3).all()


@every_case
def test_sample_is_reproducible_under_a_seed(case) -> None:
    likelihood, _ = case().build()
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(likelihood.sample())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@every_case
def test_log_normaliser_generates_the_mean_statistics(case) -> None:
    """E log p = ⟨η, E S⟩ − Ψ + E log h by the statistics' own means, against the mean of log_prob, by Monte Carlo."""
    likelihood, _ = case().build()
    likelihood = likelihood.detach()
    draws = [likelihood.sample() for _ in range(2000)]
    statistics = torch.stack([likelihood.sufficient_statistics(x) for x in draws])
    base = torch.stack([likelihood.log_base_measure(x) for x in draws])
    exact = (likelihood.natural_parameters * statistics).sum(-1)
    estimate = (likelihood.natural_parameters * statistics.mean(0)).sum(1) - likelihood.log_normaliser + base.mean(0)
    reference = torch.stack([likelihood.log_prob(likelihood.sample()) for _ in range(2000)])
    error = ((exact + base).var(0) / 2000 + reference.var(0) / 2000).sqrt()
    assert ((estimate - reference.mean(0)).abs() < 6 * error).all()


@every_case
def test_a_nan_parameter_makes_a_nan_sample_and_no_exception(case) -> None:
    """A process that raised alone would leave the others waiting; a NaN is found and the step skipped by all."""
    case = case()
    case.leaves[0].data[0] = math.nan
    likelihood = case.likelihood(*case.leaves)
    x = likelihood.sample()
    assert x[0].isnan().all()
    assert x[1:].isfinite().all()
    assert likelihood.log_prob(x)[0].isnan()
    assert likelihood.log_prob(x)[1:].isfinite().all()


@pytest.mark.parametrize(
    "case", [gaussian, CASES["DiagonalGaussian-shared"], CASES["DiagonalGaussian-scalar"], CASES["LogNormal-shared"]]
)
def test_varying_parameters_leave_out_what_all_rows_share(case) -> None:
    likelihood, _ = case().build()
    natural, varying = likelihood.natural_parameters, likelihood.varying_parameters
    torch.testing.assert_close(natural[:, : varying.shape[1]], varying)
    assert (varying.var(0) > 0).all()
    rest = natural[:, varying.shape[1] :]
    assert rest.shape[1] > 0
    assert torch.equal(rest, rest[:1].expand_as(rest))


@pytest.mark.parametrize(
    "name", ["DiagonalGaussian-rows", "LogNormal-rows", "Bernoulli", "Poisson", "Categorical-int", "SpectralGaussian"]
)
def test_all_parameters_vary_where_nothing_is_shared(name: str) -> None:
    likelihood, _ = CASES[name]().build()
    assert torch.equal(likelihood.varying_parameters, likelihood.natural_parameters)
    assert (likelihood.natural_parameters.var(0) > 0).all()


def test_directions_of_one_band_may_be_many_and_the_rest_may_share_it() -> None:
    """x itself is white where all lie in one band with one scale; J = 1."""
    case = spectral_gaussian(torch.zeros(4, dtype=torch.int64))
    log_gain, log_scale = case.leaves[0].detach(), torch.full((4,), -0.3, dtype=torch.float64)
    likelihood = case.likelihood(log_gain, log_scale)
    torch.testing.assert_close(likelihood.sizes, torch.tensor([6.0]).double())
    x = likelihood.sample()
    white = torch.distributions.Normal(likelihood.mean, (log_gain - 0.3).exp()[:, :, None, None])
    torch.testing.assert_close(likelihood.log_prob(x), white.log_prob(x).flatten(1).sum(1))


def test_a_spectrum_keeps_its_digits_in_float32() -> None:
    """Of 3 x 32 x 32 pixels, scales from 10 to 0.02: what is left of ‖x‖² = 800, a difference, is some 1."""
    directions, _ = torch.linalg.qr(torch.randn(3072, 64, dtype=torch.float64))
    log_scale = torch.cat([torch.linspace(2.3, -3.0, 64), torch.tensor([-3.9])]).double()
    band = torch.tensor([0] * 8 + [1] * 56 + [2])
    exact = SpectralGaussian(torch.zeros(5, 3).double(), log_scale, band, torch.zeros(3, 32, 32).double(), directions)
    x = exact.sample()
    single = exact.map(Tensor.float, Tensor.float)
    torch.testing.assert_close(
        single.sufficient_statistics(x.float()).double(), exact.sufficient_statistics(x), rtol=1e-3, atol=0.0
    )
    torch.testing.assert_close(single.log_prob(x.float()).double(), exact.log_prob(x), rtol=0.0, atol=1.0)


def test_gaussian_residual_parts_add_up() -> None:
    case = gaussian()
    likelihood, _ = case.build()
    weights = torch.randn(N, B, dtype=torch.float64)
    pairs = (case.x[None] - likelihood.mean[:, None]).flatten(2).square().sum(2)
    torch.testing.assert_close(
        sum(likelihood.residual(weights, case.x)), (weights * pairs).sum(0), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("shape", [(N, 3), (3,)])
def test_diagonal_gaussian_keeps_its_digits_far_from_the_origin(shape: tuple[int, ...]) -> None:
    """Membrane potentials around −70 with σ = 0.05: ⟨η, S⟩ and Ψ are 10⁶ each, their difference some units."""
    mean, log_scale = -70 + 0.1 * torch.randn(N, 3), torch.full(shape, -3.0)
    x, weights = -70 + 0.1 * torch.randn(N, 3), torch.randn(N, N)
    exact = DiagonalGaussian(mean.double(), log_scale.double())
    single = DiagonalGaussian(mean, log_scale)
    torch.testing.assert_close(single.log_prob(x).double(), exact.log_prob(x.double()), rtol=1e-4, atol=1e-3)
    expected = exact.expectation(weights.double(), x.double())
    torch.testing.assert_close(single.expectation(weights, x).double(), expected, rtol=1e-4, atol=1e-3)


def test_diagonal_gaussian_takes_scales_that_broadcast_over_the_event() -> None:
    mean, log_scale, x = torch.randn(N, 2, 3).double(), torch.randn(N, 1, 3).double(), torch.randn(N, 2, 3).double()
    reference = torch.distributions.Normal(mean, log_scale.exp()).log_prob(x).flatten(1).sum(1)
    likelihood = DiagonalGaussian(mean, log_scale)
    torch.testing.assert_close(likelihood.log_prob(x), reference)
    torch.testing.assert_close(likelihood[2:4].log_prob(x[2:4]), reference[2:4])


@pytest.mark.parametrize("family", [DiagonalGaussian, LogNormal])
@pytest.mark.parametrize("shape", [(1, 3), (N + 1, 3), (4,), (N,), (1, N, 3)])
def test_scales_of_the_wrong_shape_are_refused(family, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"log_scale has shape"):
        family(torch.zeros(N, 3), torch.zeros(shape))


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
def test_log_normal_refuses_observations_outside_its_support(value: float) -> None:
    likelihood = LogNormal(torch.zeros(2, 3), torch.zeros(3))
    x = torch.ones(2, 3)
    x[1, 2] = value
    for call in (likelihood.log_prob, lambda x: likelihood.expectation(torch.ones(2, 2), x)):
        with pytest.raises(UserError, match=rf"LogNormal.*{value}"):
            call(x)


def test_log_normal_samples_stay_inside_its_support() -> None:
    x = LogNormal(torch.tensor([[-1e3], [1e3]]), torch.zeros(1)).sample()
    assert (x > 0).all()
    assert x.isfinite().all()


@pytest.mark.parametrize("value", [-1.0, 0.5, math.inf])
def test_poisson_refuses_what_is_no_count(value: float) -> None:
    with pytest.raises(UserError, match=rf"Poisson.*{value}"):
        Poisson(torch.zeros(1, 2)).log_prob(torch.tensor([[1.0, value]]))


def test_poisson_takes_integer_tensors_and_names_no_count_for_a_rate_beyond_integers() -> None:
    likelihood = Poisson(torch.zeros(2, 1))
    torch.testing.assert_close(likelihood.log_prob(torch.tensor([[0], [3]])), torch.tensor([-1.0, -1 - math.log(6)]))
    assert Poisson(torch.tensor([[60.0], [1e3]])).sample().isnan().all()  # torch.poisson gives −2⁶³ here
    assert Poisson(torch.tensor([[20.0]])).sample() > 4e8


@pytest.mark.parametrize("value", [-1.0, float(CLASSES), 0.5])
def test_categorical_refuses_what_is_no_class(value: float) -> None:
    with pytest.raises(UserError, match=rf"Categorical.*{value}.*{CLASSES} classes"):
        Categorical(torch.zeros(1, 2, CLASSES)).log_prob(torch.tensor([[1.0, value]]))


def test_categorical_mean_and_frequencies() -> None:
    likelihood = Categorical(torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(20_000, 1, 4))
    torch.testing.assert_close(likelihood.mean[0], torch.tensor([2.0]))
    frequencies = torch.bincount(likelihood.sample().flatten().long(), minlength=4) / 20_000
    torch.testing.assert_close(frequencies, likelihood.probabilities[0, 0], rtol=0, atol=0.015)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coins_are_those_that_torch_tosses(dtype: torch.dtype) -> None:
    """On a CPU; the probability of a draw is then as exact as its."""
    probabilities = torch.rand(50_000, dtype=dtype) ** 20
    torch.manual_seed(1)
    theirs = torch.bernoulli(probabilities)
    torch.manual_seed(1)
    assert torch.equal(coins(probabilities), theirs)


def test_coins_of_certain_and_of_no_probability() -> None:
    nan = math.nan
    drawn = coins(torch.tensor([0.0, 1.0, nan]).repeat(10_000, 1))
    torch.testing.assert_close(drawn, torch.tensor([0.0, 1.0, nan]).expand_as(drawn), equal_nan=True)


def test_coins_of_half_precision_come_true_as_often_as_they_should() -> None:
    """Uniforms in bfloat16 would have 256 values."""
    probability = torch.tensor(0.001, dtype=torch.bfloat16)
    drawn = coins(probability.expand(1_000_000))
    assert drawn.dtype == torch.bfloat16
    assert abs(float(drawn.float().mean()) - float(probability)) < 5 * (0.001 / 1_000_000) ** 0.5


@every_case
def test_weights_alone_have_the_same_expectation_and_gradient(case) -> None:
    """Where the likelihood has no gradient, pairs of samples and observations take the place of a product."""
    case = case()
    likelihood, weights = case.build()[0], leaf(N, B)
    ours = likelihood.detach().expectation(weights, case.x)
    pairs = torch.stack([likelihood.log_prob(x.expand(N, *x.shape)) for x in case.x], dim=1)
    torch.testing.assert_close(ours, (weights * pairs).sum(0))
    towards = torch.randn(B, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(ours @ towards, weights)
    torch.testing.assert_close(gradient, pairs.detach() * towards)
