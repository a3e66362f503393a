"""What must be true of every competing method on images."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from image_methods import METHODS, WITH_ENCODER, built, images, log_marginal
from runs import Images, forked, named, trainer

from lightning_alws.baselines.lower_bound import LowerBoundMethod, log_mean_weight
from lightning_alws.comparison.table import METRICS
from lightning_alws.errors import UserError

FAST = ("vae", "al_p", "wgan_gp", "lae")  # of two processes; the others are marked slow
BOUNDS = [name for name in METHODS if issubclass(METHODS[name].func, LowerBoundMethod)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", METHODS)
def test_training_moves_every_parameter(name: str, tmp_path) -> None:
    module = METHODS[name](image_shape=(1, 8, 8))
    before = named(module)
    trainer(tmp_path, max_steps=20).fit(module, datamodule=Images())
    assert [key for key, value in named(module).items() if torch.equal(value, before[key])] == []


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in WITH_ENCODER]
)
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
        bounds = module.bound(x.repeat(2_000, 1, 1, 1), module.generative).view(2_000, 4)
        assert (bounds.mean(0) - 4 * bounds.std(0) / 2_000**0.5 < log_marginal(module.generative, x)).all()


@pytest.mark.parametrize("name", BOUNDS)
def test_elbo_is_also_told_per_dimension(name: str, tmp_path) -> None:
    """In nats, its sign turned, as the Langevin autoencoder's table has it; a tighter bound is not the ELBO."""
    module = METHODS[name](image_shape=(1, 8, 8))
    (tested,) = trainer(tmp_path).test(module, datamodule=Images(), verbose=False)
    assert isinstance(module, LowerBoundMethod)
    if module.bound_name == "elbo":
        assert "test/negative_elbo_per_dim" in METRICS  # the figures that alws compare shows
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


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
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
    for name, law in (("adam", torch.optim.Adam), ("adamax", torch.optim.Adamax), ("sgd", torch.optim.SGD)):
        assert isinstance(METHODS["vae"](optimizer=name).configure_optimizers(), law)


class Plant(pl.Callback):
    """Lets one weight's gradient be a NaN or an infinity in one batch, or the whole batch be NaN; on one rank."""

    def __init__(self, what: str, rank: int = 0, batch: int = 1) -> None:
        self.what, self.rank, self.batch = what, rank, batch
        self.parameters: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: torch.Tensor, batch_idx: int) -> None:
        self.parameters.append(named(pl_module))
        if batch_idx == self.batch and self.what == "batch" and trainer.global_rank == self.rank:
            batch.fill_(float("nan"))

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # The hook comes after DDP's averaging: what is planted here must be planted on every rank.
        if trainer.fit_loop.epoch_loop.batch_idx == self.batch and self.what != "batch":
            next(pl_module.generative.decoder.parameters()).grad[0, 0] = float(self.what)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.parameters.append(named(pl_module))
        seen = {"parameters": self.parameters, "skipped": pl_module.skipped_total}
        torch.save(seen, Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("batch", "step 1 skipped: the loss is nan"),
        ("nan", "step 1 skipped: the gradient of generative.decoder.net.0.0.weight holds a NaN"),
        ("inf", "step 1 skipped: the gradient of generative.decoder.net.0.0.weight holds an infinity"),
    ],
)
def test_a_step_that_is_no_number_is_skipped_named_and_counted(tmp_path, what: str, said: str) -> None:
    module = METHODS["vae"](image_shape=(1, 8, 8))
    plant = Plant(what)
    with pytest.warns(UserWarning, match=re.escape(said)):
        trainer(tmp_path, [plant], max_steps=4).fit(module, datamodule=Images())
    moved = [
        not all(torch.equal(before[key], after[key]) for key in before)
        for before, after in itertools.pairwise(plant.parameters)
    ]
    assert moved == [True, False, True, True]
    assert module.skipped_total == 1


@pytest.mark.filterwarnings("ignore:step .* skipped")
def test_a_nan_on_one_of_two_processes_is_skipped_by_both(tmp_path, monkeypatch) -> None:
    module = METHODS["vae"](image_shape=(1, 8, 8))
    forked(tmp_path, [Plant("batch", rank=1)], monkeypatch, max_steps=2).fit(module, datamodule=Images())
    for seen in (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)):
        assert seen["skipped"] == 1
        before, after = seen["parameters"][1:3]
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.filterwarnings("ignore:step .* skipped")
def test_a_run_that_learns_nothing_stops_with_advice(tmp_path) -> None:
    module = METHODS["vae"](image_shape=(1, 8, 8))
    images = Images(splits={split: torch.full((16, 1, 8, 8), float("nan")) for split in ("train", "val", "test")})
    with pytest.raises(UserError, match=r"21 steps in a row were skipped .*the loss is nan.*lower model.learning_rate"):
        trainer(tmp_path, max_steps=40, limit_val_batches=0).fit(module, datamodule=images)
