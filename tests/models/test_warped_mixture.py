"""The warped mixture: its density against torch's, its gradient against quadrature, its data's parameters recovered."""

from __future__ import annotations

import functools

import pytest
import torch
from models import flat_gradient
from torch import Tensor
from torch.distributions import Categorical, MultivariateNormal, Normal

from lightning_alws.contract import check_model
from lightning_alws.errors import UserError
from lightning_alws.kernels import MedianKernel
from lightning_alws.learning import Learning
from lightning_alws.models.warped_mixture import WarpedMixture, WarpedMixtureModel
from lightning_alws.penalties import DirichletPenalty, InverseWishartPenalty, NormalPenalty
from lightning_alws.regression import KernelRidge


def perturbed(**changes) -> WarpedMixture:
    model = WarpedMixture((2,), **({"components": 4} | changes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_log_joint_is_torchs(covariance: str) -> None:
    """log Cat(k) + log N(v; μ_k, C_k C_kᵀ + 1e-6 I) + log N(x; network(v), diag σ²), row by row."""
    model = perturbed(covariance=covariance)
    z = model.sample_prior(20)
    assert z.shape == (20, 3)
    likelihood = model.likelihood(z)
    x = likelihood.sample()
    ours = model.log_prior(z) + likelihood.log_prob(x)
    prior, layers = model.prior, list(model.network)
    for n in range(20):
        k, v = int(z[n, 0]), z[n, 1:]
        factor = prior.factors[k] if covariance == "full" else prior.factors[k].diag()
        hidden = (layers[0].weight @ v + layers[0].bias).clamp_min(0)
        mean = layers[2].weight @ hidden + layers[2].bias
        expected = (
            Categorical(logits=prior.component.logits).log_prob(torch.tensor(k))
            + MultivariateNormal(prior.means[k], factor @ factor.T + 1e-6 * torch.eye(2).double()).log_prob(v)
            + Normal(mean, model.log_scale.exp()).log_prob(x[n]).sum()
        )
        torch.testing.assert_close(ours[n], expected)


def test_published_initialisation() -> None:
    model = WarpedMixture((2,), hidden=[2000])
    assert {name: tuple(p.shape) for name, p in WarpedMixture((2,)).named_parameters()} == {
        "log_scale": (2,),
        "prior.means": (10, 2),
        "prior.factors": (10, 2, 2),
        "prior.component.logits": (10,),
        "network.0.weight": (20, 2),
        "network.0.bias": (20,),
        "network.2.weight": (2, 20),
        "network.2.bias": (2,),
    }
    assert float(model.network[0].weight.detach().std()) == pytest.approx(0.2, rel=0.1)
    assert torch.equal(model.scale, torch.tensor([-1.0, -1.0]).exp())
    assert torch.equal(model.prior.component.logits, torch.ones(10))


def test_every_parameter_receives_a_gradient() -> None:
    model = perturbed()
    check_model(model, direct=False)
    sleep = model.sleep(50)
    sleep.joint.expectation(torch.randn(50, 3).double(), sleep.x[:3]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_sampling_is_seeded_and_follows_the_weights() -> None:
    model = perturbed()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(model.sleep(5))
    assert torch.equal(draws[0].x, draws[1].x)
    assert not torch.equal(draws[0].x, draws[2].x)
    assert not draws[0].x.requires_grad
    counts = model.prior.unpack(model.sample_prior(20_000))[0].bincount(minlength=4) / 20_000
    torch.testing.assert_close(counts.double(), model.prior.probabilities.detach(), rtol=0, atol=0.02)


def test_watched_scalars_are_noise_and_weights() -> None:
    model = perturbed(components=3)
    watched = model.watched()
    assert list(watched) == ["noise_scale_0", "noise_scale_1", "weight_0", "weight_1", "weight_2"]
    assert float(sum(watched[f"weight_{k}"] for k in range(3)).detach()) == pytest.approx(1)


def one_dimensional() -> WarpedMixture:
    """Two components on a line, bent into the plane."""
    torch.manual_seed(0)
    model = WarpedMixture((2,), 2, 1, [5], weight_std=0.8, log_scale=-0.5).double()
    with torch.no_grad():
        model.prior.means.copy_(torch.tensor([[-1.0], [1.2]]))
        model.prior.factors.copy_(torch.tensor([[[0.5]], [[0.7]]]))
        model.prior.component.logits.copy_(torch.tensor([0.3, -0.2]))
    return model


def log_marginal(model: WarpedMixture, x: Tensor, points: int = 801) -> Tensor:
    """log p(x) for x (B, 2): components summed out, v in [−5, 5] integrated by the trapezoidal rule."""
    v = torch.linspace(-5, 5, points, dtype=x.dtype)[:, None]
    log_prior = torch.stack(
        [
            model.prior.log_probabilities[k]
            + Normal(model.prior.means[k], model.prior.covariances[k, 0].sqrt()).log_prob(v)[:, 0]
            for k in range(2)
        ]
    ).logsumexp(0)
    mean = model.network(v)
    log_prob = Normal(mean, model.log_scale.exp()).log_prob(x[:, None]).sum(-1)
    return (log_prior + log_prob).logsumexp(1) + (v[1, 0] - v[0, 0]).log()


@pytest.mark.slow
def test_gradient_approaches_that_of_quadrature() -> None:
    """RMS over parameters, x ~ p_θ and repeats, divided by the exact gradient's: at most 10 % at N = 4 000."""
    model = one_dimensional()
    torch.manual_seed(1)
    x = model.sleep(60).x
    exact = torch.stack([flat_gradient(value, model) for value in log_marginal(model, x)])
    single = one_dimensional().float()
    errors = []
    for count in (1000, 4000):
        squares = []
        for _ in range(20):
            regression = KernelRidge((2,), MedianKernel, ridge=0.1)
            sleep = single.sleep(count)
            with torch.no_grad():
                weights = regression.fit(sleep.x).weights(x.float())
            values = sleep.joint.expectation(weights, x.float())
            gradient = torch.stack([flat_gradient(value, single) for value in values]).double()
            squares.append((gradient - exact).square().mean())
        errors.append(float((torch.stack(squares).mean() / exact.square().mean()).sqrt()))
    assert errors[1] <= 0.1, errors
    assert errors[0] >= 1.5 * errors[1], errors


@pytest.mark.slow
def test_parameters_are_recovered_from_the_models_own_data() -> None:
    """Weights, means and covariances of three clusters, behind a network that is the identity and stays so."""
    torch.manual_seed(3)
    truth = WarpedMixture((2,), 3, 2, [4], log_scale=-2.0)
    identity = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    with torch.no_grad():
        truth.prior.means.copy_(torch.tensor([[-1.5, 0.0], [1.5, 0.5], [0.0, 2.0]]))
        truth.prior.component.logits.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
        truth.network[0].weight.copy_(identity)
        truth.network[2].weight.copy_(identity.T)
        truth.network[0].bias.zero_()
        truth.network[2].bias.zero_()
    x = truth.sleep(2000).x
    model = WarpedMixture((2,), 3, 2, [4], log_scale=-1.0)
    model.network.load_state_dict(truth.network.state_dict())
    model.network.requires_grad_(False)
    model.log_scale.requires_grad_(False)
    with torch.no_grad():
        model.log_scale.copy_(truth.log_scale)  # given: the noise adds to covariances, and the data tell the sum alone
        model.prior.means.copy_(truth.prior.means + 0.4 * torch.randn(3, 2))
    regression = KernelRidge((2,), functools.partial(MedianKernel, multiple=0.3), ridge=0.1)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 2e-2)
    for step in range(250):
        optimiser.param_groups[0]["lr"] = 2e-2 * (1 - step / 250)
        sleep = model.sleep(300)
        batch = x[torch.randint(len(x), (200,))]
        with torch.no_grad():
            weights = regression.fit(sleep.x[:250]).weights(torch.cat([batch, sleep.x[250:]]))
        fitted = sleep.joint[:250]
        loss = fitted.expectation(weights[:, 200:], sleep.x[250:]).mean()
        loss = loss - fitted.expectation(weights[:, :200], batch).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(model.prior.probabilities, truth.prior.probabilities, rtol=0, atol=0.05)
    torch.testing.assert_close(model.prior.means, truth.prior.means, rtol=0, atol=0.12)
    torch.testing.assert_close(model.prior.covariances, truth.prior.covariances, rtol=0, atol=0.05)


def test_the_module_takes_its_shape_from_the_data_and_penalties() -> None:
    penalties = [
        DirichletPenalty("prior.log_probabilities", -9.0),
        NormalPenalty("prior.means", 3.0),
        InverseWishartPenalty("prior.covariances", 2.0, 0.02),
    ]
    module = WarpedMixtureModel(components=3, learning=Learning(20, 10, penalties=penalties), event_shape=(4,))
    assert module.generative.sleep(5).x.shape == (5, 4)
    assert not module.direct


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"event_shape": None}, "event_shape is None"),
        ({"event_shape": (1, 8, 8)}, r"event_shape is \(1, 8, 8\)"),
        ({"components": 0}, "model.components is 0"),
        ({"latent_dim": 0}, "model.latent_dim is 0"),
        ({"hidden": [0]}, r"hidden is \[0\]"),
    ],
)
def test_mistakes_are_named(changes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        WarpedMixtureModel(**({"event_shape": (2,)} | changes))
