"""The Langevin autoencoder: its chain against grid posteriors, what its step learns from, and where Φ lives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from models import Curve, distance_to_grid
from runs import Images, forked, trainer
from torch import Tensor

from lightning_alws.baselines import LangevinAutoencoder
from lightning_alws.errors import UserError
from lightning_alws.langevin import Langevin
from lightning_alws.networks import MLPDecoder, MLPFeatures

CHAINS = 4000
BAR = 1.95 / CHAINS**0.5  # the Kolmogorov-Smirnov distance of one case in a thousand
# f and σ of p(x|z) = N(f(z), σ²), three observations: posteriors that are Gaussian, skewed, and of two modes
POSTERIORS: dict[str, tuple[Callable[[Tensor], Tensor], float, list[float]]] = {
    "conjugate": (lambda z: 1.5 * z, 0.8, [-1.0, 0.5, 2.0]),
    "non-linear": (lambda z: z.exp(), 0.7, [0.2, 1.0, 2.5]),
    "mixture": (lambda z: 0.8 * z.square() + 0.3 * z, 0.6, [0.1, 1.0, 1.6]),
}


def autoencoder(**settings) -> LangevinAutoencoder:
    settings = {"latent_dim": 2, "image_shape": (1, 8, 8), "likelihood": "bernoulli", "step_size": 0.01} | settings
    module = LangevinAutoencoder(
        decoder=functools.partial(MLPDecoder, hidden=[6]), encoder=functools.partial(MLPFeatures, width=8), **settings
    )
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    return module


def distances(name: str, width: int, metropolis: bool = True) -> list[float]:
    """Of each latent's law after 200 moves from its grid posterior, for features of three images in ``width``."""
    curve, scale, observations = POSTERIORS[name]
    x = torch.tensor(observations, dtype=torch.float64)[:, None]
    torch.manual_seed(0)
    module = autoencoder(latent_dim=1, image_shape=(1, 1, 1), step_size=0.1, moves=200, metropolis=metropolis)
    model = Curve(curve, scale)
    module.generative = model  # type: ignore[assignment]
    features = torch.nn.functional.normalize(torch.randn(3, width, dtype=torch.float64), dim=1)
    start = 0.3 * torch.randn(CHAINS, 1, width, dtype=torch.float64)
    z = (module.move(start, features, x).positions[-1] @ features.T)[:, 0]
    return [distance_to_grid(z[:, i], functools.partial(model.log_posterior, x[i])) for i in range(3)]


@pytest.mark.parametrize(
    "name", [name if name == "non-linear" else pytest.param(name, marks=pytest.mark.slow) for name in POSTERIORS]
)
def test_chain_samples_every_posterior_of_a_batch(name: str) -> None:
    """One matrix moves, all images are accepted or refused at once; five features are independent for three images."""
    assert max(distances(name, width=5)) < BAR


@pytest.mark.slow
@pytest.mark.parametrize("name", POSTERIORS)
def test_without_the_test_of_proposals_the_error_is_visible(name: str) -> None:
    assert max(distances(name, width=5, metropolis=False)) > BAR


def test_features_narrower_than_the_batch_cannot_sample_it() -> None:
    """The rank of three images' features must be three."""
    assert max(distances("conjugate", width=2)) > 5 * BAR


def test_step_learns_from_the_states_after_each_move() -> None:
    torch.manual_seed(0)
    module = autoencoder(moves=3).double()
    x, before = torch.rand(5, 1, 8, 8, dtype=torch.float64).round(), module.weight.clone()
    torch.manual_seed(1)
    module.training_step(x, 0).backward()
    after = module.weight.clone()
    torch.manual_seed(1)
    features = module.features(x)
    visited = module.move(before[None], features.detach(), x).positions[:, 0]
    assert visited.shape == (3, 2, 8)
    assert torch.equal(visited[-1], after)
    assert not torch.equal(after, before)
    model = module.generative
    energy = torch.zeros(())
    for weight in visited:
        z = features @ weight.T
        energy = energy - (model.log_prior(z) + model.likelihood(z).log_prob(x)).mean() / 3
    parameters = dict(module.named_parameters())
    for (name, p), gradient in zip(
        parameters.items(), torch.autograd.grad(energy, [*parameters.values()]), strict=True
    ):
        torch.testing.assert_close(p.grad, gradient, msg=name)


def test_moves_are_those_of_the_published_step_on_the_mean() -> None:
    """w − η'∇(V/B) + √(2η'/B) ε is the move of η = η'/B on the sum."""
    x, features = torch.rand(10, 1, 8, 8).round().double(), torch.randn(10, 8, dtype=torch.float64)
    module = autoencoder(step_size=1e-3, moves=1, metropolis=False).double()
    weight = module.weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module.energies(weight[None], features, x).mean(), weight)
    torch.manual_seed(0)
    published = weight - 1e-2 * gradient + (2 * 1e-2 / 10) ** 0.5 * torch.randn(1, 2, 8, dtype=torch.float64)[0]
    torch.manual_seed(0)
    ours = module.move(weight[None].detach(), features, x).positions[0, 0]
    torch.testing.assert_close(ours, published.detach())


def test_last_layer_is_in_checkpoints_and_out_of_the_optimiser(tmp_path: Path) -> None:
    """A run cut off and continued ends at the same bits."""
    torch.manual_seed(0)
    whole, first = autoencoder(), autoencoder()
    first.load_state_dict(whole.state_dict())
    held = {id(p) for group in whole.configure_optimizers().param_groups for p in group["params"]}
    assert held == {id(p) for p in whole.parameters()}
    assert "weight" in whole.state_dict()
    trainer(tmp_path, max_steps=8).fit(whole, datamodule=Images())
    part = trainer(tmp_path, max_steps=4)
    part.fit(first, datamodule=Images())
    part.save_checkpoint(tmp_path / "part.ckpt")
    second = autoencoder()
    trainer(tmp_path, max_steps=8).fit(second, datamodule=Images(), ckpt_path=tmp_path / "part.ckpt")
    for name, value in second.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


class Weight(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save(pl_module.weight, self.folder / f"rank{trainer.global_rank}.pt")


def test_two_processes_move_as_one_does_with_both_batches(tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    module = autoencoder(moves=5, step_size=0.05)
    alone = autoencoder(moves=5, step_size=0.05)
    alone.load_state_dict(module.state_dict())
    before = module.weight.clone()
    eight = {"train": Images().images("train")[:8]}
    run = forked(tmp_path, [Weight(tmp_path)], monkeypatch, max_steps=1, limit_val_batches=0)
    run.fit(module, datamodule=Images(splits=eight, batch_size=4))
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    run.fit(alone, datamodule=Images(splits=eight, batch_size=8))
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert torch.equal(one, two)
    torch.testing.assert_close(one, alone.weight, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, before, atol=1e-2)


def test_posterior_of_the_evaluation_has_the_given_scale() -> None:
    module, x = autoencoder(), torch.rand(3, 1, 8, 8)
    q = module.posterior(x)
    assert q.location.shape == q.log_scale.shape == (3, 2)
    torch.testing.assert_close(q.scale, torch.full((3, 2), 0.05))
    torch.testing.assert_close(q.location, module.features(x) @ module.weight.T)


@pytest.mark.parametrize("name", ["moves", "step_size", "posterior_scale"])
def test_settings_that_make_no_sense_are_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"model\.{name} is 0"):
        autoencoder(**{name: 0})
    with pytest.raises(UserError, match="step_size"):
        Langevin(math.inf)
