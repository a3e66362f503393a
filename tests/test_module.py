"""What every trained model shares, in real runs: averaging, clipping, noise streams, skipped steps, two processes."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from models import LinearGaussian
from runs import METHODS, Images, forked, image_model, named, trainer
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.generative import Sleep
from lightning_alws.guard import parameter_sum
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import Likelihood
from lightning_alws.models import ImageModel
from lightning_alws.module import LatentVariableModule
from lightning_alws.noise import generator, mix_seed
from lightning_alws.regression import FittedRidge


class Recorder(pl.Callback):
    """Trained parameters, gradients and Adam's state after each batch; parameters also before the first."""

    def __init__(self) -> None:
        self.parameters: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor | None]] = []
        self.adam: list[dict[int, dict[str, Tensor]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.parameters.append(named(pl_module))
        self.adam.append({})

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.parameters.append(named(pl_module))
        self.gradients.append(
            {
                name: None if p.grad is None else p.grad.clone()
                for name, p in pl_module.named_parameters()
                if p.requires_grad
            }
        )
        self.adam.append(copy.deepcopy(trainer.optimizers[0].state_dict()["state"]))


def equal(a: Any, b: Any) -> bool:
    """Whether nested dictionaries of tensors are bitwise equal."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return torch.equal(a, b)


# Averaged weights


@pytest.mark.parametrize("averaging", [0.25, 0.999])
def test_averaged_weights_are_the_documented_average(tmp_path: Path, averaging: float) -> None:
    """θ̄ ← d θ̄ + (1 − d) θ with d = min(averaging, (1 + t)/(10 + t)) after t earlier steps; the first one is copied."""
    recorder, model = Recorder(), image_model(averaging=averaging, learning_rate=0.1)
    trainer(tmp_path, [recorder], max_steps=6).fit(model, datamodule=Images())
    expected: dict[str, Tensor] = recorder.parameters[1]
    for t, current in enumerate(recorder.parameters[2:], start=1):
        decay = min(averaging, (1 + t) / (10 + t))
        expected = {name: decay * expected[name] + (1 - decay) * current[name] for name in current}
    assert model.averaged is not None
    averaged = dict(model.evaluation_model.named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name.removeprefix("generative.")].detach(), value)
        assert not torch.equal(value, recorder.parameters[-1][name])


def test_averaged_model_is_the_one_evaluated_and_saved_and_is_not_trained(tmp_path: Path) -> None:
    model = image_model(averaging=0.9, learning_rate=0.1)
    run = trainer(tmp_path, max_steps=3, enable_checkpointing=True)
    run.fit(model, datamodule=Images())
    assert model.evaluation_model is not model.generative
    assert not any(p.requires_grad for p in model.averaged.parameters())  # type: ignore[union-attr]
    optimised = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in model.evaluation_model.parameters()}
    run.save_checkpoint(tmp_path / "model.ckpt")
    stored = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    for name, value in model.evaluation_model.state_dict().items():
        assert torch.equal(stored[f"averaged.module.{name}"], value)
    assert int(stored["averaged.n_averaged"]) == 3
    again = image_model(averaging=0.9)
    again.load_state_dict(stored)
    z = torch.randn(3, 2)
    assert torch.equal(again.evaluation_model.likelihood(z).mean, model.evaluation_model.likelihood(z).mean)


def test_averaging_changes_no_training(tmp_path: Path) -> None:
    plain, averaged = image_model(), image_model(averaging=0.9)
    averaged.generative.load_state_dict(plain.generative.state_dict())
    for model in (plain, averaged):
        trainer(tmp_path, max_steps=3).fit(model, datamodule=Images())
    assert plain.evaluation_model is plain.generative
    assert not any("averaged" in name for name in plain.state_dict())
    assert equal(named(plain.generative), named(averaged.generative))


def test_averaging_counts_optimiser_steps_and_not_batches(tmp_path: Path) -> None:
    model = image_model(averaging=0.9)
    trainer(tmp_path, max_steps=2, accumulate_grad_batches=2).fit(model, datamodule=Images())
    assert int(model.averaged.n_averaged) == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("averaging", [-0.1, 1.0, 1.5])
def test_senseless_averaging_is_named(averaging: float) -> None:
    with pytest.raises(UserError, match=f"averaging is {averaging}"):
        LatentVariableModule(LinearGaussian(), averaging)


# Gradient clipping


class Unclipped(pl.Callback):
    """The gradients of each group, before they are clipped."""

    def __init__(self) -> None:
        self.groups: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.groups = [[p.grad.clone() for p in group["params"]] for group in optimizer.param_groups]


@pytest.mark.parametrize("limit", [1e-3, 1e9])
def test_each_group_is_clipped_by_its_own_norm(tmp_path: Path, limit: float) -> None:
    before, model = Unclipped(), image_model(**METHODS["AL-A"])
    run = trainer(tmp_path, [before], max_steps=1, gradient_clip_val=limit)
    run.fit(model, datamodule=Images())
    groups = run.optimizers[0].param_groups
    assert [group["name"] for group in groups] == ["model", "kernel"]
    for group, unclipped in zip(groups, before.groups, strict=True):
        norm = torch.cat([g.flatten() for g in unclipped]).norm()
        assert norm > 1e-3
        for parameter, gradient in zip(group["params"], unclipped, strict=True):
            torch.testing.assert_close(parameter.grad, gradient * min(1.0, limit / float(norm)), rtol=1e-3, atol=0)


def test_clipping_by_value(tmp_path: Path) -> None:
    before, model = Unclipped(), image_model(**METHODS["AL-A"])
    run = trainer(tmp_path, [before], max_steps=1, gradient_clip_val=1e-3, gradient_clip_algorithm="value")
    run.fit(model, datamodule=Images())
    for group, unclipped in zip(run.optimizers[0].param_groups, before.groups, strict=True):
        for parameter, gradient in zip(group["params"], unclipped, strict=True):
            assert torch.equal(parameter.grad, gradient.clamp(-1e-3, 1e-3))


# Noise streams


def draws(
    module: LatentVariableModule, stream: str, index: int | None = None, *, rank: int = 0, batch: int = 0
) -> Tensor:
    """Four numbers from a stream of a module that believes itself in a trainer."""
    module._trainer = SimpleNamespace(global_rank=rank, fit_loop=SimpleNamespace(total_batch_idx=batch))  # type: ignore[assignment]
    with module.noise(stream, index):
        return torch.randn(4)


def test_a_draw_follows_from_seed_stream_rank_and_index(monkeypatch: pytest.MonkeyPatch) -> None:
    module = LatentVariableModule(LinearGaussian())
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    first = draws(module, "a", 5, rank=1)
    torch.manual_seed(99)
    assert torch.equal(first, draws(module, "a", 5, rank=1, batch=8))
    others = [draws(module, "b", 5, rank=1), draws(module, "a", 6, rank=1), draws(module, "a", 5, rank=0)]
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    others.append(draws(module, "a", 5, rank=1))
    for i, one in enumerate([first, *others]):
        for other in [first, *others][i + 1 :]:
            assert not torch.isin(one, other).any()


def test_index_is_the_batch_count_by_default() -> None:
    module = LatentVariableModule(LinearGaussian())
    assert torch.equal(draws(module, "a", batch=7), draws(module, "a", 7))


def test_global_random_state_is_untouched_even_by_an_exception() -> None:
    module = LatentVariableModule(LinearGaussian())
    before = torch.get_rng_state()
    draws(module, "a")
    with pytest.raises(KeyError), module.noise("a"):  # noqa: PT012
        torch.randn(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_seeded_outside_a_trainer() -> None:
    module = LatentVariableModule(LinearGaussian())
    torch.manual_seed(8)
    with module.noise("a", 0):
        inside = torch.randn(4)
    torch.manual_seed(8)
    assert torch.equal(inside, torch.randn(4))


def test_seeds_do_not_collide() -> None:
    """No two of 8 000 neighbouring settings share the low 32 bits, which are all that torch's CPU generator reads."""
    seeds = [mix_seed(s, stream, r, i) for s in range(4) for stream in "ab" for r in range(10) for i in range(100)]
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, 11) != mix_seed(11, 1) != mix_seed(111)
    first = torch.stack([torch.rand(4, generator=generator(0, "a", i)) for i in range(2000)])
    assert abs(float((first[1:, 0] - 0.5) @ (first[:-1, 0] - 0.5)) / 2000 * 12) < 5 / 2000**0.5  # neighbours


def record_draws(module: AmortisedLearning, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Tensor]]:
    """The latents of every draw from now on, with the stream's name."""
    latents: list[tuple[str, Tensor]] = []
    original = module.draw

    def draw(count: int, stream: str, index: int | None = None) -> Sleep:
        sleep = original(count, stream, index)
        latents.append((stream, sleep.z))
        return sleep

    monkeypatch.setattr(module, "draw", draw)
    return latents


def test_every_batch_draws_its_own_noise_under_accumulation_and_a_rerun_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = image_model()
    start = copy.deepcopy(model.state_dict())
    runs = []
    for _ in range(2):
        model.load_state_dict(start)
        latents = record_draws(model, monkeypatch)
        torch.randn(int(torch.randint(50, ())))  # the global generator is elsewhere each time
        run = trainer(tmp_path, max_steps=3, accumulate_grad_batches=2, max_epochs=2)
        run.fit(model, datamodule=Images())
        runs.append([z for stream, z in latents if stream == "sleep"])
        monkeypatch.undo()
    assert len(runs[0]) == 6
    assert len(torch.cat(runs[0])[:, 0].unique()) == 6 * 20
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_every_validation_draws_the_same_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model()
    latents = record_draws(model, monkeypatch)
    trainer(tmp_path, max_steps=4, val_check_interval=2).fit(model, datamodule=Images())
    first, second = (z for stream, z in latents if stream == "validation")
    assert torch.equal(first, second)


# Steps that are skipped


def fail_on(model: AmortisedLearning, batches: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the regression of these training batches fail."""
    original = model.regression.fit

    def fit(x: Tensor, wake: Tensor | None = None) -> FittedRidge:
        fitted = original(x)
        if model.trainer.fit_loop.total_batch_idx in batches:
            fitted.failure = "a failure was planted"
        return fitted

    monkeypatch.setattr(model.regression, "fit", fit)


def run_with_failures(
    folder: Path, batches: set[int], monkeypatch: pytest.MonkeyPatch, model: ImageModel | None = None, **changes: Any
) -> tuple[ImageModel, Recorder]:
    model, recorder = model or image_model(**METHODS["centred AL-A"]), Recorder()
    fail_on(model, batches, monkeypatch)
    run = trainer(folder, [recorder], limit_val_batches=0, **({"max_steps": 4} | changes))
    run.fit(model, datamodule=Images())
    return model, recorder


@pytest.mark.filterwarnings("ignore:step .* skipped")
@pytest.mark.parametrize("batches", [set(), {0}, {2}, {0, 1}, {1, 3}])
def test_a_skipped_step_moves_neither_parameters_nor_adam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: set[int]
) -> None:
    model, recorder = run_with_failures(tmp_path, batches, monkeypatch)
    for batch in range(4):
        for states in (recorder.parameters, recorder.adam):
            assert equal(states[batch], states[batch + 1]) == (batch in batches), batch
    assert model.skipped_total == len(batches)
    assert all(int(state["step"]) == 4 - len(batches) for state in recorder.adam[-1].values())


def test_a_good_step_takes_no_trainer() -> None:
    """A loop of one's own, as the benchmarks have, calls the same hooks."""
    model = image_model()
    parameter = next(model.parameters())
    loss = parameter.square().sum()
    model.on_before_backward(loss)
    loss.backward()
    model.on_before_optimizer_step(torch.optim.SGD([parameter], lr=0.1))
    assert parameter.grad is not None


@pytest.mark.filterwarnings("ignore:step .* skipped")
def test_a_step_after_a_skipped_one_is_the_step_that_would_have_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skipping batch 0 and learning from batch 1 is learning from batch 1, with its own noise."""
    model = image_model()
    start = copy.deepcopy(model.state_dict())
    _, recorder = run_with_failures(tmp_path, {0}, monkeypatch, model, max_steps=2)
    skipped = recorder.gradients[1]
    monkeypatch.undo()
    model.load_state_dict(start)
    model.log = lambda *args, **options: None  # type: ignore[method-assign]
    model._trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=0, world_size=1, fit_loop=SimpleNamespace(total_batch_idx=1)
    )
    model.zero_grad()
    model.training_step(Images().images("train")[4:8], 1).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, skipped[name])


@pytest.mark.filterwarnings("ignore:step .* skipped")
@pytest.mark.parametrize("batches", [{0}, {1}])
def test_a_skip_under_accumulation_keeps_the_other_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: set[int]
) -> None:
    _, recorder = run_with_failures(tmp_path, batches, monkeypatch, max_steps=1, accumulate_grad_batches=2)
    if batches == {0}:
        assert all((g == 0).all() for g in recorder.gradients[0].values() if g is not None)
    else:  # the skipped second batch adds nothing to the first one's gradient
        assert equal(recorder.gradients[0], recorder.gradients[1])
    assert any((g != 0).any() for g in recorder.gradients[1].values() if g is not None)
    assert all(int(state["step"]) == 1 for state in recorder.adam[-1].values())
    assert not equal(recorder.parameters[0], recorder.parameters[-1])


@pytest.mark.filterwarnings("ignore:step .* skipped")
def test_skips_alone_under_accumulation_move_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, recorder = run_with_failures(tmp_path, {2, 3}, monkeypatch, max_steps=2, accumulate_grad_batches=2)
    assert equal(recorder.parameters[2], recorder.parameters[4])
    assert equal(recorder.adam[2], recorder.adam[4])
    assert recorder.adam[2]


def test_a_skip_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="step 1 skipped: a failure was planted"):
        run_with_failures(tmp_path, {1}, monkeypatch)


@pytest.mark.filterwarnings("ignore:step .* skipped")
def test_too_many_skips_in_a_row_stop_the_run_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model(max_skipped=2)
    with pytest.raises(UserError, match="3 steps in a row were skipped") as error:
        run_with_failures(tmp_path, {1, 2, 3}, monkeypatch, model)
    assert "a failure was planted" in str(error.value)
    assert "model.learning.regression.ridge" in str(error.value)
    assert model.skipped_total == 3


@pytest.mark.filterwarnings("ignore:step .* skipped")
def test_skips_that_are_not_in_a_row_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = image_model(max_skipped=2)
    run_with_failures(tmp_path, {0, 1, 3, 4, 6}, monkeypatch, model, max_steps=8, max_epochs=-1)
    assert model.skipped_total == 5


def test_the_loss_that_moves_nothing_reaches_every_parameter() -> None:
    model = image_model(**METHODS["AL-A"])
    with torch.no_grad():
        next(model.generative.parameters()).fill_(float("inf"))  # a diverged model too
    parameter_sum(model).backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters() if p.requires_grad)


class Planted:
    """A likelihood whose first row is not a number wherever ``count`` samples are drawn, once it is made active."""

    def __init__(self, model: ImageModel, count: int) -> None:
        self.likelihood, self.count, self.active = model.generative.likelihood, count, False
        model.generative.likelihood = self  # type: ignore[assignment, method-assign]

    def __call__(self, z: Tensor) -> Likelihood:
        likelihood = self.likelihood(z)
        if not self.active or len(z) != self.count:
            return likelihood
        bad = (torch.arange(len(z)) == 0).view(-1, 1, 1, 1)
        return likelihood.map(lambda rows: torch.where(bad, float("nan"), rows), lambda shared: shared)


class PlantedOnRankOne(pl.Callback):
    """Plants the NaN in batch 1, on rank 1 alone."""

    def __init__(self, planted: Planted) -> None:
        self.planted = planted

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Tensor, batch_idx: int) -> None:
        self.planted.active = trainer.global_rank == 1 and batch_idx == 1


class Witness(pl.Callback):
    """Writes what each process saw."""

    def __init__(self, folder: Path, recorder: Recorder, latents: list[tuple[str, Tensor]]) -> None:
        self.folder, self.recorder, self.latents = folder, recorder, latents

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        content = {
            "parameters": self.recorder.parameters,
            "adam": self.recorder.adam,
            "state": pl_module.state_dict(),
            "latents": [z for stream, z in self.latents if stream in ("sleep", "held_out")],
            "skipped": pl_module.skipped_total,
        }
        torch.save(content, self.folder / f"rank{trainer.global_rank}.pt")


def two_processes(
    folder: Path, model: ImageModel, monkeypatch: pytest.MonkeyPatch, *more: pl.Callback, **changes: Any
) -> list[dict[str, Any]]:
    """What each of two processes saw in a run of the model."""
    latents, recorder = record_draws(model, monkeypatch), Recorder()
    likelihood = "gaussian" if hasattr(model.generative.pixels, "log_scale") else "bernoulli"
    run = forked(folder, [*more, recorder, Witness(folder, recorder, latents)], monkeypatch, **changes)
    run.fit(model, datamodule=Images(likelihood, batch_size=2))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.filterwarnings("ignore:step .* skipped")
@pytest.mark.parametrize(
    ("likelihood", "method", "count"),
    [
        ("gaussian", "AL-F", 20),
        pytest.param("gaussian", "centred AL-A", 20, marks=pytest.mark.slow),
        ("gaussian", "centred", 10),  # a held-out sample
        pytest.param("bernoulli", "AL-F", 20, marks=pytest.mark.slow),
    ],
)
def test_a_nan_on_one_of_two_processes_skips_the_step_on_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, likelihood: str, method: str, count: int
) -> None:
    model = image_model(likelihood, **METHODS[method], averaging=0.9)
    zero, one = two_processes(tmp_path, model, monkeypatch, PlantedOnRankOne(Planted(model, count)), max_steps=4)
    assert zero["skipped"] == one["skipped"] == 1
    for rank in (zero, one):
        assert equal(rank["parameters"][1], rank["parameters"][2])
        assert equal(rank["adam"][1], rank["adam"][2])
        assert not equal(rank["parameters"][2], rank["parameters"][3])
    assert equal(zero["state"], one["state"])
    assert all(value.isfinite().all() for value in zero["state"].values())


@pytest.mark.parametrize(
    "method", [name if name == "AL-A" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_two_processes_draw_their_own_noise_and_stay_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    model = image_model(**METHODS[method], averaging=0.9, learning_rate=0.05)
    zero, one = two_processes(tmp_path, model, monkeypatch, max_steps=4)
    assert not equal(zero["parameters"][0], zero["parameters"][-1])
    assert equal(zero["state"], one["state"])
    assert equal(zero["adam"][-1], one["adam"][-1])
    every = torch.cat([*zero["latents"], *one["latents"]])[:, 0]
    assert len(every) == 2 * 4 * (20 + Learning(held_out=10, **METHODS[method]).held_out_drawn)
    assert len(every.unique()) == len(every)


class PlantedInValidation(pl.Callback):
    """Plants the NaN in the validation's sleep samples, on rank 1 alone."""

    def __init__(self, planted: Planted) -> None:
        self.planted = planted

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.planted.active = trainer.global_rank == 1

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.planted.active = False


def test_a_nan_on_one_of_two_processes_in_validation_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = image_model("gaussian")
    planted = PlantedInValidation(Planted(model, 20))
    zero, one = two_processes(tmp_path, model, monkeypatch, planted, max_steps=4, val_check_interval=2)
    assert equal(zero["state"], one["state"])
