"""What must be true of every competing method on images."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from image_methods import METHODS, WITH_ENCODER, built, images, log_marginal
from runs import Images, forked, named, trainer

from lightning_alws.baselines.lower_bound import LowerBoundMethod, log_mean_weight
from lightning_alws.errors import UserError

BOUNDS = [name for name in METHODS if issubclass(METHODS[name].func, LowerBoundMethod)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHODS)
def test_training_moves_every_parameter(name: str, tmp_path) -> None:
    module = METHODS[name](image_shape=(1, 8, 8))
    before = named(module)
    trainer(tmp_path, max_steps=20).fit(module, datamodule=Images())
    assert [key for key, value in named(module).items() if torch.equal(value, before[key])] == []


@pytest.mark.parametrize("name", WITH_ENCODER)
def test_importance_weights_are_unbiased(name: str) -> None:
    """E_q[p_θ(x, z)/q(z|x)] = p_θ(x), which a grid over the two latents gives."""
    module, x = built(name), images(4)
    with torch.no_grad():
        exact = log_marginal(module.generative, x)
        log_weights = module.log_weights(x, 40_000, module.generative)  # type: ignore[operator]
        assert log_weights.shape == (40_000, 4)
        estimate = log_mean_weight(log_weights)
        weights = (log_weights - exact).exp()
    error = weights.std(0) / 40_000**0.5
    assert float(error.max()) < 0.03
    assert ((weights.mean(0) - 1).abs() < 4 * error).all()
    torch.testing.assert_close(estimate, exact, atol=0.1, rtol=0)


@pytest.mark.parametrize("name", BOUNDS)
def test_bound_is_below_the_log_likelihood(name: str) -> None:
    module, x = built(name), images(4)
    assert isinstance(module, LowerBoundMethod)
    with torch.no_grad():
        bounds = torch.stack([module.bound(x, module.generative) for _ in range(2_000)])
        assert (bounds.mean(0) - 4 * bounds.std(0) / 2_000**0.5 < log_marginal(module.generative, x)).all()


@pytest.mark.parametrize("name", BOUNDS)
def test_elbo_is_also_told_per_dimension(name: str, tmp_path) -> None:
    """In nats, its sign turned, as the Langevin autoencoder's table has it; a tighter bound is not the ELBO."""
    module = METHODS[name](image_shape=(1, 8, 8))
    (tested,) = trainer(tmp_path).test(module, datamodule=Images(), verbose=False)
    assert isinstance(module, LowerBoundMethod)
    if module.bound_name == "elbo":
        assert tested["test/negative_elbo_per_dim"] == pytest.approx(-tested["test/elbo"] / 64, rel=1e-5)
    else:
        assert "test/negative_elbo_per_dim" not in tested


class Ranks(pl.Callback):
    """Each process's parameters, buffers and draws, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with pl_module.noise("test"):  # type: ignore[operator]
            draw = torch.randn(3)
        state = named(pl_module) | {f"buffer {name}": buffer for name, buffer in pl_module.named_buffers()}
        torch.save({"state": state, "draw": draw}, self.folder / f"rank{trainer.global_rank}.pt")


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_keep_their_parameters_equal(name: str, tmp_path, monkeypatch) -> None:
    """Each has draws of its own, and half of the images."""
    module = METHODS[name](image_shape=(1, 8, 8))
    before = named(module)
    forked(tmp_path, [Ranks(tmp_path)], monkeypatch, max_steps=3).fit(module, datamodule=Images())
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert not torch.equal(one["draw"], two["draw"])
    for key, value in one["state"].items():
        torch.testing.assert_close(value, two["state"][key], rtol=0, atol=0)
    assert any(not torch.equal(value, one["state"][key]) for key, value in before.items())


@pytest.mark.parametrize("name", METHODS)
def test_mistakes_are_named(name: str) -> None:
    with pytest.raises(UserError, match="model.learning_rate is -1"):
        METHODS[name](learning_rate=-1)
    with pytest.raises(UserError, match="image_shape"):
        METHODS[name](image_shape=None)
    with pytest.raises(UserError, match="model.optimizer is 'newton'"):
        METHODS[name](optimizer="newton")


def test_optimiser_is_a_setting() -> None:
    for name, law in (("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)):
        assert isinstance(METHODS["vae"](optimizer=name).configure_optimizers(), law)
