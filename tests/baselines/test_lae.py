"""The Langevin autoencoder: its chain against grid posteriors, what its step learns from, and where Φ lives."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from langevin_autoencoders import POSTERIORS, autoencoder, scalar
from models import Curve, distance_to_grid
from runs import Images, forked, trainer
from torch.utils.data import DistributedSampler

from lightning_alws.errors import UserError
from lightning_alws.langevin import Langevin
from lightning_alws.noise import global_seed

CHAINS = 4000
BAR = 1.95 / CHAINS**0.5  # the Kolmogorov-Smirnov distance of one case in a thousand


def distances(name: str, width: int, **settings) -> list[float]:
    """Of each latent's law after 200 moves from its grid posterior, for features of three images in ``width``."""
    module, x = scalar(name, **{"step_size": 0.1, "moves": 200} | settings)
    model: Curve = module.generative  # type: ignore[assignment]
    features = torch.nn.functional.normalize(torch.randn(3, width, dtype=torch.float64), dim=1)
    start = 0.3 * torch.randn(CHAINS, 1, width, dtype=torch.float64)
    z = (module.move(start, features, x).positions[-1] @ features.T)[:, 0]
    return [distance_to_grid(z[:, i], functools.partial(model.log_posterior, x[i])) for i in range(3)]


@pytest.mark.parametrize("damping", [None, 0.1])
@pytest.mark.parametrize(
    "name", [name if name == "non-linear" else pytest.param(name, marks=pytest.mark.slow) for name in POSTERIORS]
)
def test_chain_samples_every_posterior_of_a_batch(name: str, damping: float | None) -> None:
    """One matrix moves, all images are accepted or refused at once; five features are independent for three images."""
    assert max(distances(name, width=5, damping=damping)) < BAR


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


@pytest.mark.parametrize("settings", [{}, {"damping": 0.1, "acceptance": 0.57}], ids=["published", "damped"])
def test_last_layer_is_in_checkpoints_and_out_of_the_optimiser(tmp_path: Path, settings: dict) -> None:
    """A run cut off and continued ends at the same bits."""
    torch.manual_seed(0)
    whole, first = autoencoder(**settings), autoencoder(**settings)
    first.load_state_dict(whole.state_dict())
    held = {id(p) for group in whole.configure_optimizers().param_groups for p in group["params"]}
    assert held == {id(p) for p in whole.parameters()}
    assert "weight" in whole.state_dict()
    trainer(tmp_path, max_steps=8).fit(whole, datamodule=Images())
    part = trainer(tmp_path, max_steps=4)
    part.fit(first, datamodule=Images())
    part.save_checkpoint(tmp_path / "part.ckpt")
    second = autoencoder(**settings)
    trainer(tmp_path, max_steps=8).fit(second, datamodule=Images(), ckpt_path=tmp_path / "part.ckpt")
    for name, value in second.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


class Weight(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save(dict(pl_module.named_buffers()), self.folder / f"rank{trainer.global_rank}.pt")


@pytest.mark.parametrize("damping", [None, 0.1])
def test_two_processes_move_as_one_does_with_both_batches(tmp_path: Path, monkeypatch, damping: float | None) -> None:
    torch.manual_seed(0)
    module, alone = (autoencoder(moves=5, step_size=0.05, acceptance=0.57, damping=damping) for _ in range(2))
    alone.load_state_dict(module.state_dict())
    before = module.weight.clone()
    eight = {"train": Images().images("train")[:8]}
    run = forked(tmp_path, [Weight(tmp_path)], monkeypatch, max_steps=1, limit_val_batches=0)
    run.fit(module, datamodule=Images(splits=eight, batch_size=4))
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    # In the order in which the two have them, by which damped moves draw their noise.
    parts = (DistributedSampler(range(8), 2, rank, seed=global_seed()) for rank in range(2))  # type: ignore[arg-type]
    in_order = {"train": eight["train"][[*itertools.chain(*parts)]]}
    run.fit(alone, datamodule=Images(splits=in_order, batch_size=8))
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for name, value in alone.named_buffers():
        assert torch.equal(one[name], two[name]), name
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one["weight"], before, atol=1e-2)


def test_posterior_of_the_evaluation_has_the_given_scale() -> None:
    module, x = autoencoder(), torch.rand(3, 1, 8, 8)
    q = module.posterior(x)
    assert q.location.shape == q.log_scale.shape == (3, 2)
    torch.testing.assert_close(q.scale, torch.full((3, 2), 0.05))
    torch.testing.assert_close(q.location, module.features(x) @ module.weight.T)


@pytest.mark.parametrize(
    "name", ["moves", "step_size", "posterior_scale", "damping", "acceptance", "encoder_learning_rate"]
)
def test_settings_that_make_no_sense_are_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"model\.{name} is 0"):
        autoencoder(**{name: 0})
    with pytest.raises(UserError, match="acceptance is 0.57 and model.metropolis False"):
        autoencoder(acceptance=0.57, metropolis=False)
    with pytest.raises(UserError, match="step_size"):
        Langevin(math.inf)
