"""WGAN-GP: the penalty against finite differences, and steps that are counted once, whoever counts them."""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from image_methods import CRITIC, SMALL, images
from pytorch_lightning.loggers import CSVLogger
from runs import Images, forked, named, trainer
from torch import Tensor, nn

from datamodules import Digits
from lightning_alws.baselines import WGANGP
from lightning_alws.baselines.wgan_gp import gradient_penalty
from lightning_alws.errors import UserError
from lightning_alws.networks import MLPCritic, MLPDecoder
from lightning_alws.priors import BernoulliPrior, FlowPrior

LEAKY = functools.partial(MLPCritic, hidden=[8, 7])
CRITICS = {
    "leaky": lambda: LEAKY((1, 2, 3)),
    "smooth": lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)),
}


def method(shape: tuple[int, int, int] = (1, 8, 8), likelihood: str = "bernoulli", **settings: Any) -> WGANGP:
    torch.manual_seed(0)
    return WGANGP(**{**SMALL, "critic": CRITIC, "image_shape": shape, "likelihood": likelihood, **settings})


@pytest.mark.parametrize("name", CRITICS)
def test_penalty_and_its_gradient_against_finite_differences(name: str) -> None:
    """The norm from differences of D over each pixel; the parameters' gradient from differences of the penalty."""
    torch.manual_seed(1)
    critic = CRITICS[name]().double()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.mul_(2)
    real, fake, position = images(5), torch.rand(5, 1, 2, 3).double(), torch.rand(5).double()

    def by_differences(step: float = 1e-6) -> Tensor:
        with torch.no_grad():
            total = torch.zeros((), dtype=torch.float64)
            for b in range(5):
                y = (1 - position[b]) * real[b] + position[b] * fake[b]
                steps = step * torch.eye(6, dtype=torch.float64).view(6, 1, 2, 3)
                gradient = (critic(y + steps) - critic(y - steps)) / (2 * step)
                total += (gradient.square().sum().sqrt() - 1) ** 2 / 5
        return total

    penalty = gradient_penalty(critic, real, fake, position)
    torch.testing.assert_close(penalty.detach(), by_differences(), rtol=1e-6, atol=1e-8)
    parameters = [p for p in critic.parameters() if not (name == "smooth" and p is critic[-2].bias)]
    gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
    moved = 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for index in range(0, parameter.numel(), 5):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * 1e-4
                values.append(by_differences())
                with torch.no_grad():
                    parameter.view(-1)[index] -= sign * 1e-4
            expected = float(values[0] - values[1]) / 2e-4
            actual = 0.0 if gradient is None else float(gradient.view(-1)[index])
            assert actual == pytest.approx(expected, rel=1e-3, abs=1e-4)
            moved += actual != 0
    assert moved > 8


def test_penalty_of_a_linear_critic_is_known_and_every_row_has_its_own_gradient() -> None:
    """D(x) = aᵀx: (‖a‖ − 1)² wherever it is evaluated; a batch of two is the mean of its rows."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(6, 1, bias=False), nn.Flatten(0)).double()
    norm = critic[1].weight.norm()
    x, y, u = images(4), torch.rand(4, 1, 2, 3).double(), torch.rand(4).double()
    torch.testing.assert_close(gradient_penalty(critic, x, y, u), (norm - 1) ** 2)
    critic = CRITICS["smooth"]().double()
    rows = [gradient_penalty(critic, x[b : b + 1], y[b : b + 1], u[b : b + 1]) for b in range(4)]
    torch.testing.assert_close(gradient_penalty(critic, x, y, u), torch.stack(rows).mean())
    ends = [torch.zeros(4).double(), torch.ones(4).double()]
    at_real, at_fake = (gradient_penalty(critic, x, y, end) for end in ends)
    torch.testing.assert_close(at_real, gradient_penalty(critic, x, x, u))
    torch.testing.assert_close(at_fake, gradient_penalty(critic, y, y, u))
    assert not torch.isclose(at_real, at_fake)


def test_losses_are_the_definitions() -> None:
    """One critic step and a generator step with plain gradient descent at rate 1, repeated by hand."""

    class Descent(WGANGP):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), lr=1.0) for part in (self.generative, self.critic)]

    torch.manual_seed(0)
    module = Descent(**{**SMALL, "critic": CRITIC, "image_shape": (1, 8, 8)}, critic_steps=1)
    before, x, taken = {}, [], {}

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Tensor, index: int) -> None:
            x.append(batch)
            before.update(named(pl_module))
            with pl_module.noise("critic"):
                z = pl_module.generative.sample_prior(4)
                taken["position"] = torch.rand(4)
            taken["fake"] = pl_module.generative.likelihood(z).mean.detach()
            with pl_module.noise("generator"):
                taken["z"] = pl_module.generative.sample_prior(4)

    trainer(Path(), [Watch()], max_steps=1).fit(module, datamodule=Images())
    other = Descent(**{**SMALL, "critic": CRITIC, "image_shape": (1, 8, 8)}, critic_steps=1)
    other.load_state_dict(before)
    y = (x[0] + taken["position"].view(4, 1, 1, 1) * (taken["fake"] - x[0])).requires_grad_()
    slope = torch.autograd.grad(other.critic(y).sum(), y, create_graph=True)[0].flatten(1).norm(dim=1)
    loss = other.critic(taken["fake"]).mean() - other.critic(x[0]).mean() + 10 * ((slope - 1) ** 2).mean()
    for parameter, step in zip(
        other.critic.parameters(), torch.autograd.grad(loss, [*other.critic.parameters()]), strict=True
    ):
        parameter.data -= step
    loss = -other.critic(other.generative.likelihood(taken["z"]).mean).mean()
    gradients = torch.autograd.grad(loss, [*other.generative.parameters()])
    for parameter, step in zip(other.generative.parameters(), gradients, strict=True):
        parameter.data -= step
    after = named(module)
    for name, value in named(other).items():
        torch.testing.assert_close(value, after[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(value, before[name])


def adam_steps(checkpoint: dict[str, Any]) -> list[set[int]]:
    """How often each optimiser stepped, in the checkpoint's own words."""
    return [{int(state["step"]) for state in part["state"].values()} for part in checkpoint["optimizer_states"]]


class Counts(pl.Callback):
    """Steps at which the validation ran."""

    def __init__(self) -> None:
        self.validated: list[int] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated.append(trainer.global_step)


@pytest.mark.parametrize("batch_size", [5, 3])  # the last batch of an epoch has one image: fewer than critic steps
def test_a_step_is_a_generator_step_for_everyone_who_counts(batch_size: int, tmp_path: Path) -> None:
    module, counts = method(averaging=0.9), Counts()
    logger = CSVLogger(str(tmp_path), name="", version="")
    run = trainer(
        tmp_path,
        [counts],
        max_steps=10,
        max_epochs=-1,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        logger=logger,
        log_every_n_steps=1,
    )
    run.fit(module, datamodule=Images(batch_size=batch_size))
    run.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert run.global_step == checkpoint["global_step"] == 10
    assert run.fit_loop.total_batch_idx + 1 == 10
    assert adam_steps(checkpoint) == [{10}, {50}]
    assert counts.validated == [4, 8]
    assert int(module.averaged.n_averaged) == 10  # type: ignore[union-attr]
    with open(tmp_path / "metrics.csv") as file:
        rows = [*csv.DictReader(file)]
    assert [int(row["step"]) for row in rows if row["train/wasserstein"]] == [*range(10)]
    assert [int(row["step"]) for row in rows if row["val/wasserstein"]] == [3, 7]


def test_resumed_run_equals_an_uncut_one(tmp_path: Path) -> None:
    """Cut within an epoch of six batches: every state bitwise equal, both optimisers' too."""

    def fit(name: str, steps: int, resumed: Path | None = None) -> dict[str, Any]:
        run = trainer(tmp_path / name, max_steps=steps, max_epochs=-1, limit_val_batches=0)
        data = Digits(batch_size=250)
        run.fit(method(averaging=0.9), datamodule=data, ckpt_path=resumed, weights_only=True)
        run.save_checkpoint(tmp_path / f"{name}.ckpt")
        return torch.load(tmp_path / f"{name}.ckpt", weights_only=True)

    uncut, cut = fit("uncut", 9), fit("cut", 4)
    assert adam_steps(cut) == [{4}, {20}]
    resumed = fit("resumed", 9, tmp_path / "cut.ckpt")
    assert adam_steps(uncut) == adam_steps(resumed) == [{9}, {45}]
    assert uncut["global_step"] == resumed["global_step"] == 9
    for name, value in uncut["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
        assert "log_scale" in name or not torch.equal(value, cut["state_dict"][name]), name
    for one, two in zip(uncut["optimizer_states"], resumed["optimizer_states"], strict=True):
        assert one["state"].keys() == two["state"].keys()
        for key, state in one["state"].items():
            assert all(torch.equal(value, two["state"][key][part]) for part, value in state.items())


class Gradients(pl.Callback):
    """Each process's gradients as its optimisers get them, and its parameters at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gradients: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.gradients.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if id(p) in mine})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save(
            (self.gradients, named(pl_module), trainer.global_step), self.folder / f"rank{trainer.global_rank}.pt"
        )


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_two_processes_step_alike(likelihood: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gradient that an optimiser sees is the mean over processes: five of the critic, one of the generator."""
    module = method(likelihood=likelihood)
    forked(tmp_path, [Gradients(tmp_path)], monkeypatch, max_steps=2).fit(module, datamodule=Images(likelihood))
    (first, one, steps), (second, two, _) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert [next(iter(g)).split(".")[0] for g in first] == (["critic"] * 5 + ["generative"]) * 2
    for mine, others in zip(first, second, strict=True):
        assert all(torch.equal(value, others[name]) and value.any() for name, value in mine.items())
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert steps == 2


def test_noise_of_grey_images_is_held_and_small(tmp_path: Path) -> None:
    module = method(likelihood="gaussian", averaging=0.9)
    assert "generative.pixels.log_scale" not in named(module)
    trainer(tmp_path, max_steps=3).fit(module, datamodule=Images("gaussian"))
    for model in (module.generative, module.evaluation_model):
        torch.testing.assert_close(model.pixels.scale, torch.tensor(1 / 255))  # type: ignore[union-attr]
        likelihood = model.likelihood(model.sample_prior(50))  # type: ignore[union-attr, operator]
        assert (likelihood.sample() - likelihood.mean).abs().max() < 6 / 255
    scale = method(likelihood="gaussian", noise_floor=0.3).generative.pixels.scale
    torch.testing.assert_close(scale, torch.tensor(0.3), rtol=1e-3, atol=0)


def test_critic_estimates_the_distance_of_the_evaluated_model(tmp_path: Path) -> None:
    module = method(averaging=0.9)
    run = trainer(tmp_path, max_steps=4)
    run.fit(module, datamodule=Images())
    run.test(module, datamodule=Images(), verbose=False)
    model, parts = module.evaluation_model, []
    for index, x in enumerate(Images().test_dataloader()):
        with module.noise("test", index), torch.no_grad():
            fake = model.likelihood(model.sample_prior(len(x))).mean  # type: ignore[operator]
            parts.append((module.critic(x).mean() - module.critic(fake).mean()) * len(x) / 7)
    torch.testing.assert_close(run.callback_metrics["test/wasserstein"], sum(parts))


@pytest.mark.slow
def test_generator_learns_both_of_two_images(tmp_path: Path) -> None:
    """Left half white or right half white, evenly: what it makes is near one of the two, and each in its turn."""
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 1
    rows = torch.cat([left, 1 - left]).repeat(50, 1, 1, 1)
    data = Images(splits={"train": rows, "val": rows, "test": rows}, batch_size=50)
    decoder, critic = functools.partial(MLPDecoder, hidden=[32]), functools.partial(MLPCritic, hidden=[64])
    module = method(decoder=decoder, critic=critic, learning_rate=3e-3)
    trainer(tmp_path, max_steps=100, max_epochs=-1, limit_val_batches=0).fit(module, datamodule=data)
    with torch.no_grad():
        made = module.fakes(500)
        is_left = made[..., :4].mean((1, 2, 3)) > 0.5
        error = (made - torch.where(is_left.view(-1, 1, 1, 1), left, 1 - left)).abs().mean((1, 2, 3))
    assert float(error.median()) < 0.15
    assert 0.25 < float(is_left.float().mean()) < 0.75


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_steps": 0}, "model.critic_steps is 0"),
        ({"penalty": -1.0}, "model.penalty is -1"),
        ({"betas": (0.5, 1.0)}, "model.betas is"),
        ({"prior": FlowPrior}, "model.prior is FlowPrior"),
        ({"prior": BernoulliPrior}, "model.prior is BernoulliPrior"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(**settings)
    method(prior=functools.partial(BernoulliPrior, learnt=False))


class Spoil(pl.Callback):
    """Fills the batches of these numbers with NaN."""

    def __init__(self, batches: set[int]) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Tensor, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx in self.batches:
            batch.fill_(float("nan"))


def test_a_batch_of_nans_is_skipped_and_counted_once(tmp_path: Path) -> None:
    """Though the critic takes several steps on it, and the generator's own is good."""
    module = method()
    with pytest.warns(UserWarning, match="step 1 skipped: the loss is nan") as warned:
        trainer(tmp_path, [Spoil({1})], max_steps=3, limit_val_batches=0).fit(module, datamodule=Images())
    assert len([one for one in warned if "skipped" in str(one.message)]) == module.skipped_total == 1
    assert module.skipped_in_a_row == 0
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.filterwarnings("ignore:step .* skipped")
def test_a_run_of_nans_stops_with_advice(tmp_path: Path) -> None:
    module = method()
    module.max_skipped = 2
    run = trainer(tmp_path, [Spoil(set(range(3, 99)))], max_steps=40, max_epochs=-1, limit_val_batches=0)
    with pytest.raises(UserError, match=r"3 steps in a row were skipped \(step 5 because the loss is nan\); lower"):
        run.fit(module, datamodule=Images())
