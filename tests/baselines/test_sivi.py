"""The semi-implicit posterior: its mixture against torch, the surrogate bound in J, the law of its noise."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from image_methods import ENCODER, SMALL, images, log_marginal
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn.functional import layer_norm

from lightning_alws.baselines import SIVI
from lightning_alws.networks import ConvFeatures


def sivi(spread: float = 1.0, log_scale: float = 0.0, **settings: Any) -> SIVI:
    """A small one in float64, whose ψ are spread out by a factor, with log σ raised."""
    torch.manual_seed(0)
    settings = {"noise": [3], "hidden": [6], "encoder": ENCODER, **SMALL, **settings}
    module = SIVI(**settings).double()
    with torch.no_grad():
        module.location.weight.mul_(spread)
        module.log_scale.bias.add_(log_scale)
    return module


def atoms(module: SIVI, x: Tensor) -> Tensor:
    """The eight ψ that three random bits can give for each image, (8, B, latent_dim)."""
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    features = module.features(x)
    stage = module.stages[0]
    hidden = stage.from_features(layer_norm(features, features.shape[-1:])) + stage.from_noise(bits)[:, None]  # type: ignore[operator]
    return module.location(stage.rest(hidden))  # type: ignore[operator]


@pytest.mark.parametrize("samples", [1, 3, 4, 9])
def test_density_is_the_mixture_over_the_drawn_means(samples: int) -> None:
    """Of torch.distributions; samples beyond J + 1 have a further set of means."""
    module, x = sivi(mixture=3), images(2)
    drawn: list[Tensor] = []
    means = module.means
    module.means = lambda *args: drawn.append(means(*args)) or drawn[0]  # type: ignore[method-assign, func-returns-value]
    draws = module.draw(x, samples)
    z, log_h = draws.z, draws.log_q
    assert z.shape == (samples, 2, 2)
    assert len(drawn[0]) == 4 * math.ceil(samples / 4)
    scale = module.log_scale(module.features(x)).exp()
    for sample in range(samples):
        start = 4 * (sample // 4)
        components = Independent(Normal(drawn[0][start : start + 4].transpose(0, 1), scale[:, None]), 1)
        law = MixtureSameFamily(Categorical(logits=torch.zeros(2, 4, dtype=torch.float64)), components)
        torch.testing.assert_close(log_h[sample], law.log_prob(z[sample]))


def test_density_far_from_the_other_means_does_not_underflow() -> None:
    module = sivi(spread=1e4, mixture=5).float()
    draws = module.draw(images(20).float(), 1)
    assert torch.isfinite(draws.z).all()
    assert torch.isfinite(draws.log_q).all()


def test_means_take_the_values_that_random_bits_give_alike_often() -> None:
    module, x = sivi(), images(1)
    with torch.no_grad():
        draws, values = module.means(module.features(x), 8_000)[:, 0], atoms(module, x)[:, 0]
    distance, which = torch.cdist(draws, values).min(1)
    assert float(distance.max()) < 1e-6
    counts = torch.bincount(which, minlength=8)
    assert float((counts - 1000).abs().max()) < 5 * 1000**0.5


def test_bound_rises_with_further_means_to_that_of_the_whole_mixture() -> None:
    """L_0 < L_1 < … → E_q log p(x, z)/q(z|x) < log p(x), with q the mixture of eight that the bits make, on a grid."""
    module, x = sivi(spread=6.0, log_scale=-1.2), images(2)
    bounds, errors = [], []
    with torch.no_grad():
        for module.mixture in (0, 1, 4, 16, 150):
            values = module.bound(x.repeat(3_000, 1, 1, 1), module.generative).view(3_000, 2)
            bounds.append(values.mean(0))
            errors.append(values.std(0) / 3_000**0.5)
        psi, scale = atoms(module, x), module.log_scale(module.features(x)).exp()
        line = torch.linspace(-8, 8, 241, dtype=torch.float64)
        grid = torch.cartesian_prod(line, line)
        log_q = Normal(psi[:, :, None], scale[:, None]).log_prob(grid).sum(-1).logsumexp(0) - math.log(8)
        likelihood = module.generative.likelihood(grid)
        log_prob = torch.stack([likelihood.log_prob(one.expand(len(grid), *one.shape)) for one in x])
        q = log_q.exp() * (line[1] - line[0]) ** 2
        torch.testing.assert_close(q.sum(1), torch.ones_like(q[:, 0]), atol=1e-4, rtol=0)
        limit = (q * (log_prob + module.generative.log_prior(grid) - log_q)).sum(1)
    for one, two, error in zip(bounds, bounds[1:], errors[1:], strict=False):
        assert (two > one - 3 * error).all()
    assert (bounds[3] - bounds[0] > 0.3).all()
    assert ((bounds[-1] - limit).abs() < 4 * errors[-1] + 0.05).all()
    assert (limit < log_marginal(module.generative, x)).all()


def test_noise_taken_off_the_bound_has_mean_zero() -> None:
    """The bound of one draw, less the noise, against the mean log weight."""
    module, x = sivi(spread=2.0, mixture=3), images(2).repeat(20_000, 1, 1, 1)
    with torch.no_grad():
        difference = module.bound(x, module.generative) - module.log_weights(x, 1, module.generative)[0]
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / len(difference) ** 0.5
    assert float(difference.std()) > 0.1


@pytest.mark.parametrize("mixture", [0, 1, 6])
def test_weights_are_unbiased_whatever_the_number_of_further_means(mixture: int) -> None:
    """Each sample alone, and the mean of those that share a set of means."""
    module, x = sivi(spread=2.0, log_scale=0.4, mixture=mixture), images(3)
    with torch.no_grad():
        exact = log_marginal(module.generative, x)
        for samples in {1, mixture + 1}:
            batch = x.repeat(12_000, 1, 1, 1)
            log_weights = module.log_weights(batch, samples, module.generative).view(samples, 12_000, 3)
            weights = (log_weights - exact).exp().mean(0)
            error = weights.std(0) / 12_000**0.5
            assert float(error.max()) < 0.03
            assert ((weights.mean(0) - 1).abs() < 4 * error).all()


def test_published_sizes_can_be_given() -> None:
    module = functools.partial(SIVI, noise=[150, 100, 50], hidden=[500, 500])(encoder=ENCODER, **SMALL)
    shapes = [tuple(stage.rest[1][-1].weight.shape) for stage in module.stages]  # type: ignore[union-attr, index]
    assert shapes == [(150, 500), (100, 500), (500, 500)]


def test_untrained_means_tell_images_apart_beside_their_noise() -> None:
    """Of published sizes: the spread of E[ψ|x] over images is a third or more of that over random bits."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {**SMALL, "image_shape": (1, 8, 8)}
    module = SIVI(encoder=ConvFeatures, **settings)
    with torch.no_grad():
        psi = module.means(module.features((torch.rand(40, 1, 8, 8) < 0.5).float()), 200)
    assert float(psi.mean(0).std(0).min() / psi.std(0).mean(0).max()) > 1 / 3
    assert float(psi.std(0).mean(0).min()) > 0.05
