"""The importance weighted autoencoder: its bound rises with K from the ELBO, its gradient is the definition's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from image_methods import built, images, log_marginal
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

from lightning_alws.baselines import IWAE
from lightning_alws.baselines.lower_bound import log_joint
from lightning_alws.baselines.vae import elbo
from lightning_alws.errors import UserError


def method(samples: int) -> IWAE:
    """With a decoder steep enough for q to be far from the posterior."""
    module = built("iwae", samples=samples)
    assert isinstance(module, IWAE)
    with torch.no_grad():
        for layer in module.generative.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(4.0)
    return module


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(0), values.std(0) / len(values) ** 0.5


def test_bound_rises_with_samples_from_the_elbo_to_the_log_likelihood() -> None:
    """ELBO = L_1 < L_2 < L_8 < L_64 < log p(x) for every image, each step beyond three standard errors."""
    x, repeats = images(3), 4_000
    with torch.no_grad():
        module = method(1)
        many = x.repeat(repeats, 1, 1, 1)
        closed, closed_error = mean_and_error(elbo(module.posterior(many), module.generative, many).view(repeats, 3))
        means, errors = [], []
        for samples in (1, 2, 8, 64):
            mean, error = mean_and_error(method(samples).bound(many, module.generative).view(repeats, 3))
            means.append(mean)
            errors.append(error)
        exact = log_marginal(module.generative, x)
    assert ((means[0] - closed).abs() < 4 * (errors[0].square() + closed_error.square()).sqrt()).all()
    for (one, two), (a, b) in zip(pairwise(means), pairwise(errors), strict=True):
        assert (two - one > 3 * (a.square() + b.square()).sqrt()).all()
    assert (means[-1] < exact + 4 * errors[-1]).all()
    assert (exact - means[-1] < 0.2 * (exact - means[0])).all()


def test_bound_and_gradient_are_the_definitions_for_the_draws_at_hand() -> None:
    """log (1/K) Σ w_k by torch.distributions; its gradient Σ_k w̃_k ∇ log w_k, through the draws, the w̃ as numbers."""
    module, x = method(5), images(2)
    model, parameters = module.generative, [*module.parameters()]
    torch.manual_seed(5)
    bound = module.bound(x, model)
    torch.manual_seed(5)
    noise = torch.randn(5, 2, 2, dtype=torch.float64)
    location, log_scale = module.heads(module.encoder(x)).chunk(2, dim=-1)
    z = location + log_scale.exp() * noise
    law = Bernoulli(1e-4 + (1 - 2e-4) * model.decoder(z.flatten(0, 1)).sigmoid())
    log_prob = law.log_prob(x.repeat(5, 1, 1, 1)).flatten(1).sum(1).view(5, 2)
    log_p = log_prob + Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(log_p, log_joint(model, z, x))
    log_w = log_p - Normal(location, log_scale.exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(bound, log_w.exp().mean(0).log())
    weights = log_w.detach().exp()
    weights = weights / weights.sum(0)
    assert float(weights.max()) < 0.999
    expected = torch.autograd.grad((weights * log_w).sum(), parameters, retain_graph=True)
    for taken, gradient in zip(torch.autograd.grad(bound.sum(), parameters), expected, strict=True):
        torch.testing.assert_close(taken, gradient)
        assert gradient.any()


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="model.samples is 0"):
        method(0)
