"""The variational autoencoder: divergences against torch, the bound against exact log-likelihoods."""

from __future__ import annotations

import functools

import pytest
import torch
from models import LinearGaussian
from runs import trainer
from torch import Tensor, nn
from torch.distributions import Laplace, Normal, kl_divergence

from lightning_alws.baselines.vae import GaussianPosterior, LaplacePosterior, Posterior, VariationalAutoencoder
from lightning_alws.errors import UserError
from lightning_alws.models import IndependentComponents
from lightning_alws.priors import LaplacePrior, StandardNormal

FAMILIES = {GaussianPosterior: (Normal, StandardNormal), LaplacePosterior: (Laplace, LaplacePrior)}


def made(family: type[Posterior], rows: int = 5, dim: int = 3) -> Posterior:
    location = 2 * torch.randn(rows, dim, dtype=torch.float64, requires_grad=True)
    log_scale = torch.randn(rows, dim, dtype=torch.float64, requires_grad=True)
    return family(location, log_scale)


def vae(model: nn.Module, posterior: str = "gaussian", dim: int = 3, **settings) -> VariationalAutoencoder:
    settings.setdefault("hidden", [])
    module = VariationalAutoencoder(lambda shape: model, posterior, event_shape=(dim,), **settings)
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize("family", FAMILIES)
def test_divergence_and_density_are_torchs(family: type[Posterior]) -> None:
    law, prior = FAMILIES[family]
    q = made(family)
    reference = law(q.location, q.scale)
    divergence = q.divergence(prior(3))
    torch.testing.assert_close(divergence, kl_divergence(reference, law(torch.zeros(()), torch.ones(()))).sum(1))
    z = q.sample()
    torch.testing.assert_close(q.log_prob(z), reference.log_prob(z).sum(1))


def test_divergence_is_left_to_the_draw_where_it_has_no_closed_form() -> None:
    assert made(GaussianPosterior).divergence(LaplacePrior(3)) is None
    assert made(LaplacePosterior).divergence(StandardNormal(3)) is None
    assert made(LaplacePosterior).divergence(None) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_have_the_moments_of_the_family_and_gradients(family: type[Posterior]) -> None:
    law, _ = FAMILIES[family]
    location, log_scale = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.2, -0.7]])
    q = family(location.expand(200_000, 2), log_scale.expand(200_000, 2))
    draws, reference = q.sample(), law(location[0], log_scale[0].exp())
    torch.testing.assert_close(draws.mean(0), reference.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.std(0), reference.stddev, atol=0.02, rtol=0)
    q = made(family)
    assert all((g != 0).all() for g in torch.autograd.grad(q.sample().sum(), [q.location, q.log_scale]))


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_and_drawn_divergence_agree(family: type[Posterior]) -> None:
    _, prior = FAMILIES[family]
    q = made(family, rows=1)
    many = family(q.location.expand(200_000, 3), q.log_scale.expand(200_000, 3))
    z = many.sample()
    drawn = many.log_prob(z) - prior(3).double().log_prob(z)
    error = float((drawn.mean() - q.divergence(prior(3))).detach()) / float(drawn.std().detach() / 200_000**0.5)
    assert abs(error) < 4


@pytest.mark.parametrize("posterior", ["gaussian", "laplace"])
def test_bound_is_below_the_exact_log_likelihood(posterior: str) -> None:
    model = LinearGaussian()
    module = vae(model, posterior).double()
    x = model.sleep(20).x
    with torch.no_grad():
        bounds = torch.stack([module.bound(x, module.generative) for _ in range(3000)])
        exact = model.log_marginal(x)
    assert (bounds.mean(0) - 4 * bounds.std(0) / 3000**0.5 < exact).all()


def test_bound_is_tight_with_the_exact_posterior() -> None:
    """One latent: a linear encoder can be the exact posterior, and every single draw then gives log p(x)."""
    model = LinearGaussian(latent_dim=1)
    module = vae(model).double()
    weight, noise = model.weight.detach(), (2 * model.log_scale).exp().detach()
    precision = 1 + weight.square().sum() / noise
    layer = module.encoder.net[1][0]
    with torch.no_grad():
        layer.weight.copy_(torch.cat([weight.T / noise / precision, torch.zeros_like(weight.T)]))
        layer.bias.copy_(torch.stack([-(weight.T @ model.bias / noise / precision)[0], -0.5 * precision.log()]))
    x = model.sleep(10).x
    torch.testing.assert_close(module.bound(x, module.generative), model.log_marginal(x))


@pytest.mark.parametrize("posterior", ["gaussian", "laplace"])
def test_every_parameter_gets_a_gradient(posterior: str) -> None:
    module = vae(IndependentComponents((3,), 2, weight_std=1.0), posterior, hidden=[4])
    module.training_step(torch.randn(5, 3), 0).backward()
    without = [name for name, p in module.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert without == []
    groups = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert groups == {id(p) for p in module.parameters()}


def test_training_raises_the_bound_to_near_the_truth(tmp_path) -> None:
    """Data of a one-factor model: the bound can reach the exact likelihood."""
    torch.manual_seed(0)
    true = LinearGaussian(latent_dim=1, log_scale=-1.0)
    x = true.sleep(2000).x
    model = LinearGaussian(latent_dim=1, log_scale=0.0, seed=1)
    module = vae(model, learning_rate=0.02).double()
    optimiser = module.configure_optimizers()
    for _ in range(400):
        loss = module.training_step(x[torch.randint(len(x), (100,))], 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        gap = true.log_marginal(x).mean() - module.bound(x, module.generative).mean()
        assert model.log_marginal(x).mean() >= module.bound(x, module.generative).mean() - 0.02
    assert float(gap) < 0.1


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(4, generator=torch.Generator().manual_seed(index))


def test_run_in_a_trainer_with_averaged_weights(tmp_path) -> None:
    generative = functools.partial(IndependentComponents, latent_dim=2, weight_std=0.5)
    module = VariationalAutoencoder(generative, "laplace", [8], averaging=0.9, event_shape=(4,))
    loader = torch.utils.data.DataLoader(Rows(), batch_size=4)
    run = trainer(tmp_path, max_steps=6)
    run.fit(module, loader, loader)
    assert {"val/elbo", "train/elbo"} <= set(run.callback_metrics)
    run.test(module, loader, verbose=False)
    assert "test/elbo" in run.callback_metrics
    assert not torch.equal(module.generative.weight, module.evaluation_model.weight)


class Categories(LinearGaussian):
    def sample_prior(self, count: int) -> Tensor:
        return torch.randint(3, (count,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"event_shape": None}, "'event_shape'"),
        ({"posterior": "student"}, "model.posterior is 'student'"),
        ({"learning_rate": 0.0}, "model.learning_rate is 0"),
        ({"hidden": [0]}, "model.hidden is 0"),
        ({"generative": lambda shape: Categories()}, "vectors of real numbers only"),
    ],
)
def test_settings_that_make_no_sense_are_named(change: dict, message: str) -> None:
    settings = {"generative": lambda shape: LinearGaussian(), "event_shape": (3,)} | change
    with pytest.raises(UserError, match=message):
        VariationalAutoencoder(**settings)
