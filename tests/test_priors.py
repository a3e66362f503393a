"""Every prior: normalised, torch's density, samples that follow it, gradients in every parameter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Distribution, Laplace, MultivariateNormal, Normal, Uniform

import lightning_alws.priors as priors
from lightning_alws.errors import UserError
from lightning_alws.priors import (
    BernoulliPrior,
    CategoricalPrior,
    CirclePrior,
    FlowPrior,
    GaussianMixturePrior,
    LaplacePrior,
    Prior,
    StandardNormal,
    UniformPrior,
)

K = 4


def perturbed(build: Callable[[], Prior], by: float = 0.3) -> Callable[[], Prior]:
    """Away from initial values, where symmetries hide errors."""

    def made() -> Prior:
        prior = build().double()
        with torch.no_grad():
            for parameter in prior.parameters():
                parameter.add_(by * torch.randn_like(parameter))
        return prior

    return made


CASES = {
    "StandardNormal": perturbed(lambda: StandardNormal(2)),
    "LaplacePrior": perturbed(lambda: LaplacePrior(2)),
    "UniformPrior": perturbed(lambda: UniformPrior(2, -1.0, 0.5)),
    "CirclePrior": perturbed(CirclePrior),
    "BernoulliPrior": perturbed(lambda: BernoulliPrior(3)),
    "BernoulliPrior-fixed": perturbed(lambda: BernoulliPrior(3, learnt=False)),
    "CategoricalPrior": perturbed(lambda: CategoricalPrior(K)),
    "CategoricalPrior-fixed": perturbed(lambda: CategoricalPrior(K, learnt=False)),
    "GaussianMixturePrior-full": perturbed(lambda: GaussianMixturePrior(K, 2)),
    "GaussianMixturePrior-diagonal": perturbed(lambda: GaussianMixturePrior(K, 2, covariance="diagonal")),
    "GaussianMixturePrior-1d": perturbed(lambda: GaussianMixturePrior(K, 1)),
    "FlowPrior": perturbed(lambda: FlowPrior(2, transforms=2, bins=4, hidden=(16,)), by=0.1),
    "FlowPrior-1d": perturbed(lambda: FlowPrior(1, transforms=2, bins=4, hidden=(16,)), by=0.1),
    "FlowPrior-coupling": perturbed(lambda: FlowPrior(2, transforms=2, bins=4, hidden=(16,), coupling=True), by=0.1),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_every_prior_is_under_test() -> None:
    defined = {
        thing.__name__ for thing in vars(priors).values() if isinstance(thing, type) and issubclass(thing, Prior)
    }
    assert {type(case()).__name__ for case in CASES.values()} == defined - {"Prior"}


def grid(low: float, high: float, points: int, dim: int) -> tuple[Tensor, float]:
    """Midpoints of a grid (points^dim, dim), and the volume of one cell."""
    step = (high - low) / points
    axis = low + step * (torch.arange(points, dtype=torch.float64) + 0.5)
    return torch.stack(torch.meshgrid(*[axis] * dim, indexing="ij"), -1).view(-1, dim), step**dim


def everywhere(prior: Prior) -> tuple[Tensor, float]:
    """Points that cover the support of a prior with a latent of one or two dimensions, and the measure of each."""
    if isinstance(prior, CategoricalPrior):
        return torch.arange(prior.num_classes), 1.0
    if isinstance(prior, BernoulliPrior):
        return torch.cartesian_prod(*[torch.arange(2.0).double()] * prior.dim), 1.0
    if isinstance(prior, CirclePrior):
        angle, step = grid(-math.pi, math.pi, 500, 1)
        return torch.cat([angle.cos(), angle.sin()], 1), step
    if isinstance(prior, GaussianMixturePrior):
        values, volume = grid(-5, 5, 500, prior.dim)
        component = torch.arange(K).repeat_interleave(len(values)).double()
        return torch.cat([component[:, None], values.repeat(K, 1)], 1), volume
    half = {StandardNormal: 8.0, UniformPrior: 1.5, LaplacePrior: 25.0, FlowPrior: 9.0}[type(prior)]
    return grid(-half, half, 600, prior.dim)


@every_case
@torch.no_grad()
def test_density_integrates_to_one(case) -> None:
    prior = case()
    points, volume = everywhere(prior)
    # The flow's density has kinks at its knots; the others are smooth or lie on the grid.
    assert float(prior.log_prob(points).exp().sum() * volume) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize(
    "case",
    # A flow draws by inverting its transforms.
    [pytest.param(case, id=name, marks=pytest.mark.slow if "Flow" in name else ()) for name, case in CASES.items()],
)
@torch.no_grad()
def test_samples_have_the_moments_of_the_density(case) -> None:
    prior = case()
    points, volume = everywhere(prior)
    weights = prior.log_prob(points).exp() * volume
    z = prior.sample(20_000)
    for moment in (first, second):
        drawn, expected = moment(z), weights @ moment(points)
        assert ((drawn.mean(0) - expected).abs() < 5 * drawn.std(0) / len(z) ** 0.5 + 4e-3).all()


def first(z: Tensor) -> Tensor:
    return z.double().view(len(z), -1)


def second(z: Tensor) -> Tensor:
    z = first(z)
    return (z[:, :, None] * z[:, None, :]).flatten(1)


@every_case
def test_samples_have_one_row_each_no_gradient_and_a_finite_density(case) -> None:
    prior = case()
    z = prior.sample(7)
    assert len(z) == 7
    assert not z.requires_grad
    assert z.dtype == (torch.int64 if isinstance(prior, CategoricalPrior) else torch.float64)
    log_prob = prior.log_prob(z)
    assert log_prob.shape == (7,)
    assert log_prob.dtype == torch.float64
    assert log_prob.isfinite().all()


@every_case
def test_single_precision_is_close_to_double(case) -> None:
    prior = case()
    z = prior.sample(50)
    double = prior.log_prob(z)
    single = prior.float().log_prob(z if z.dtype == torch.int64 else z.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


@every_case
def test_sampling_is_reproducible_under_a_seed(case) -> None:
    prior, draws = case(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(prior.sample(20))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@every_case
def test_every_parameter_of_a_learnt_prior_gets_a_gradient(case) -> None:
    prior = case()
    assert prior.learnt == (len(list(prior.parameters())) > 0)
    if not prior.learnt:
        assert not prior.log_prob(prior.sample(5)).requires_grad
        return
    log_prob = prior.log_prob(prior.sample(200))
    (torch.randn(200).double() * log_prob).sum().backward()
    missing = [
        n for n, p in prior.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert missing == []


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case().learnt])
def test_score_has_mean_zero_over_samples_and_is_autograds(name: str) -> None:
    """E ∇ log p = 0 over samples of the density itself, and of no other; along random directions in θ."""
    prior = CASES[name]()
    z, step = prior.sample(4000), 1e-7  # small: splines and ReLUs have kinks
    for _ in range(5):
        direction = [torch.randn_like(parameter) for parameter in prior.parameters()]
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                for parameter, change in zip(prior.parameters(), direction, strict=True):
                    parameter.add_(sign * step * change)
                values.append(prior.log_prob(z))
        with torch.no_grad():
            for parameter, change in zip(prior.parameters(), direction, strict=True):
                parameter.add_(step * change)
        score = (values[0] - values[1]) / (2 * step)
        assert score.mean().abs() < 5 * score.std() / len(z) ** 0.5
        gradient = torch.autograd.grad(prior.log_prob(z).mean(), list(prior.parameters()))
        along = sum((g * change).sum() for g, change in zip(gradient, direction, strict=True))
        torch.testing.assert_close(along, score.mean(), rtol=1e-3, atol=1e-3)


@every_case
def test_state_is_saved_and_restored(case) -> None:
    prior, other = case(), case()
    other.load_state_dict(prior.state_dict())
    z = prior.sample(9)
    torch.testing.assert_close(other.log_prob(z), prior.log_prob(z))


FIXED = {
    "StandardNormal": (lambda: StandardNormal(3), Normal(0.0, 1.0)),
    "LaplacePrior": (lambda: LaplacePrior(3), Laplace(0.0, 1.0)),
    "UniformPrior": (lambda: UniformPrior(3, -1.0, 0.5), Uniform(*torch.tensor([-1.0, 0.5], dtype=torch.float64))),
}


@pytest.mark.parametrize(("build", "reference"), FIXED.values(), ids=FIXED.keys())
def test_fixed_priors_are_those_of_torch(build, reference: Distribution) -> None:
    prior = build().double()
    z = prior.sample(2000)
    torch.testing.assert_close(prior.log_prob(z), reference.log_prob(z).sum(1))
    assert stats.kstest(z.flatten().numpy(), lambda v: reference.cdf(torch.from_numpy(v)).numpy()).pvalue > 1e-3


def test_uniform_density_is_zero_outside() -> None:
    prior = UniformPrior(2, 0.0, 2.0)
    torch.testing.assert_close(
        prior.log_prob(torch.tensor([[1.0, 2.0], [1.0, 2.1]])), torch.tensor([-math.log(4), -math.inf])
    )


def test_circle_samples_lie_on_it_and_their_angle_is_uniform() -> None:
    z = CirclePrior().double().sample(5000)
    torch.testing.assert_close(z.square().sum(1), torch.ones(5000, dtype=torch.float64))
    angle = torch.atan2(z[:, 1], z[:, 0]).numpy()
    assert stats.kstest(angle, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3


def test_categorical_is_torchs() -> None:
    prior = CASES["CategoricalPrior"]()
    z = prior.sample(20_000)
    reference = torch.distributions.Categorical(logits=prior.logits)
    torch.testing.assert_close(prior.log_prob(z), reference.log_prob(z))
    torch.testing.assert_close(prior.log_probabilities, reference.probs.log())
    expected = 20_000 * prior.probabilities.detach()
    assert stats.chisquare(torch.bincount(z, minlength=K), expected).pvalue > 1e-3


def test_binary_prior_is_torchs() -> None:
    prior = CASES["BernoulliPrior"]()
    z = prior.sample(20_000)
    reference = torch.distributions.Bernoulli(logits=prior.logits)
    torch.testing.assert_close(prior.log_prob(z), reference.log_prob(z).sum(1))
    torch.testing.assert_close(prior.probabilities, reference.probs)
    assert torch.equal(BernoulliPrior(4).probabilities, torch.full((4,), 0.5))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("dim", [1, 3])
def test_mixture_is_torchs_and_so_are_its_gradients(covariance: str, dim: int) -> None:
    prior = perturbed(lambda: GaussianMixturePrior(K, dim, covariance=covariance))()
    z = prior.sample(50)
    component, value = prior.unpack(z)
    assert component.dtype == torch.int64
    factors = prior.factors if covariance == "full" else prior.factors.diag_embed()
    covariances = factors @ factors.mT + 1e-6 * torch.eye(dim)
    torch.testing.assert_close(prior.covariances, covariances)
    reference = MultivariateNormal(prior.means[component], covariances[component]).log_prob(value)
    reference = reference + torch.distributions.Categorical(logits=prior.component.logits).log_prob(component)
    torch.testing.assert_close(prior.log_prob(z), reference)
    leaves, weights = list(prior.parameters()), torch.randn(50, dtype=torch.float64)
    ours = torch.autograd.grad((weights * prior.log_prob(z)).sum(), leaves)
    theirs = torch.autograd.grad((weights * reference).sum(), leaves)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_mixture_begins_as_published(covariance: str) -> None:
    torch.manual_seed(5)
    prior = GaussianMixturePrior(10, 2, covariance=covariance)
    assert torch.equal(prior.component.logits, torch.ones(10))
    torch.testing.assert_close(prior.covariances, (0.09 + 1e-6) * torch.eye(2).expand(10, 2, 2))
    many = GaussianMixturePrior(4000, 2, mean_scale=2.0, scale=0.1, covariance=covariance)
    assert many.means.std().item() == pytest.approx(2.0, rel=0.05)
    torch.testing.assert_close(many.covariances[0], (0.01 + 1e-6) * torch.eye(2))


def test_mixture_density_survives_a_singular_factor() -> None:
    """C Cᵀ + 1e-6 I is not positive definite in float32 where C is large and of rank one; its Cholesky factor fails."""
    prior = GaussianMixturePrior(1, 2)
    with torch.no_grad():
        prior.factors.copy_(torch.tensor([[[100.0, 100.0], [100.0, 100.0]]]))
    z = prior.sample(20)
    log_prob = prior.log_prob(z)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert prior.factors.grad.isfinite().all()


@every_case
def test_values_are_the_real_numbers_of_a_sample(case) -> None:
    prior = case()
    z = prior.sample(9)
    values = prior.values(z)
    if isinstance(prior, CategoricalPrior):
        assert torch.equal(values.argmax(1), z)
        assert torch.equal(values.sum(1), torch.ones(9).double())
    else:
        assert torch.equal(values, z[:, 1:] if isinstance(prior, GaussianMixturePrior) else z)
    assert values.dtype == torch.float64
    discrete = BernoulliPrior | CategoricalPrior | CirclePrior | GaussianMixturePrior
    assert prior.real == (not isinstance(prior, discrete))


@pytest.mark.parametrize("case", ["full", "diagonal", "1d"])
def test_mixture_by_component(case: str) -> None:
    """log p(k, v) of every k, as log_prob has it one by one; draws of one component; packing and unpacking."""
    prior = CASES[f"GaussianMixturePrior-{case}"]()
    assert isinstance(prior, GaussianMixturePrior)
    z = prior.sample(11)
    component, value = prior.unpack(z)
    assert torch.equal(prior.pack(component, value), z)
    log_joint = prior.log_joint(value)
    assert log_joint.shape == (11, K)
    for k in range(K):
        torch.testing.assert_close(log_joint[:, k], prior.log_prob(prior.pack(torch.full((11,), k), value)))
    statistics = prior.statistics(z)
    assert torch.equal(statistics["component"].argmax(1), component)
    assert torch.equal(statistics["component"].sum(1), torch.ones(11).double())
    assert torch.equal(statistics["value"], value)
    draws = prior.sample_component(2, 20_000)
    assert (draws[:, 0] == 2).all()
    assert not draws.requires_grad
    mean, covariance = prior.means[2].detach(), prior.covariances[2].detach()
    error = 5 * covariance.diagonal().sqrt() / 20_000**0.5
    assert ((draws[:, 1:].mean(0) - mean).abs() < error).all()
    torch.testing.assert_close(draws[:, 1:].T.cov().view_as(covariance), covariance, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("case", ["BernoulliPrior", "CategoricalPrior", "GaussianMixturePrior-full", "FlowPrior"])
def test_a_nan_parameter_makes_a_nan_density_and_no_exception(case: str) -> None:
    prior = CASES[case]()
    with torch.no_grad():
        next(prior.parameters()).fill_(math.nan)
    assert prior.log_prob(prior.sample(20)).isnan().any()


def test_flow_learns_a_density() -> None:
    """Maximum likelihood on a bimodal target: the cross-entropy comes near the entropy, which no Gaussian reaches."""
    target = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2)), Normal(torch.tensor([-1.5, 1.5]), torch.tensor(0.3))
    )
    prior = FlowPrior(1, transforms=1, hidden=(16,))
    optimiser = torch.optim.Adam(prior.parameters(), 2e-2)
    for _ in range(150):
        optimiser.zero_grad()
        (-prior.log_prob(target.sample((256, 1))).mean()).backward()
        optimiser.step()
    z = target.sample((4000,))
    excess = (target.log_prob(z) - prior.log_prob(z[:, None])).mean()
    gaussian = (target.log_prob(z) - Normal(0.0, float(z.std())).log_prob(z)).mean()
    assert excess < 0.1 < 0.5 < gaussian


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_flow_begins_close_to_a_standard_normal(dim: int) -> None:
    z = torch.randn(2000, dim)
    excess = StandardNormal(dim).log_prob(z) - FlowPrior(dim).log_prob(z)
    assert excess.mean() < 0.25 * dim  # zuko's own start in one dimension is some 3 nats away


def test_importing_priors_leaves_torchs_validation_as_it_was() -> None:
    with pytest.raises(ValueError, match="support"):
        Uniform(0.0, 1.0).log_prob(torch.tensor(2.0))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: StandardNormal(0), "dim is 0"),
        (lambda: LaplacePrior(-1), "dim is -1"),
        (lambda: UniformPrior(1, 2.0, 2.0), "low is 2.0 and prior.high is 2.0"),
        (lambda: UniformPrior(1, 0.0, math.inf), "high is inf"),
        (lambda: BernoulliPrior(0), "dim is 0"),
        (lambda: CategoricalPrior(0), "num_classes is 0"),
        (lambda: GaussianMixturePrior(0, 2), "components is 0"),
        (lambda: GaussianMixturePrior(2, 2, scale=0.0), "scale is 0"),
        (lambda: GaussianMixturePrior(2, 2, covariance="round"), "covariance is 'round'"),
        (lambda: FlowPrior(0), "dim is 0"),
        (lambda: FlowPrior(2, transforms=0), "transforms is 0"),
        (lambda: FlowPrior(2, bins=1), "bins is 1"),
        (lambda: FlowPrior(2, hidden=(4, 0)), "hidden is .*0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build()
