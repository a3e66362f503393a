"""Pooled over real processes: DDP's gradient in a trainer is that of one process with the samples of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from models import LinearGaussian
from ranks import concatenate
from runs import METHODS, forked, image_model, trainer
from test_module import Planted, PlantedOnRankOne, equal, two_processes
from test_scope import OBJECTIVES, REGRESSIONS, assert_close
from torch import Tensor
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader

from lightning_alws.generative import Sleep
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.noise import seeded
from lightning_alws.penalties import NormalPenalty
from lightning_alws.regression import KernelRidge

SAMPLES, HELD_OUT, WAKE, STEPS = 12, 6, 4, 2


class Data(pl.LightningDataModule):
    """For each of two steps a batch of four for each of so many ranks: each process has its own, or one has all."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        x = torch.linspace(-2, 2, STEPS * ranks * WAKE * 3, dtype=torch.float64).sin()
        self.x = x.view(STEPS, ranks, WAKE, 3)
        self.sizes = {"train": STEPS * ranks * WAKE}

    def train_dataloader(self) -> DataLoader:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        x = self.x[:, rank : rank + 1] if ranks > 1 else self.x
        return DataLoader(x.reshape(-1, 3), batch_size=x.shape[1] * WAKE)  # type: ignore[arg-type]

    val_dataloader = train_dataloader


class Gradients(pl.Callback):
    """Writes what each process's optimiser is given, and what is logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.requires_grad})

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        logged = {name: value for name, value in trainer.callback_metrics.items() if "objective" in name}
        state = pl_module.state_dict()
        torch.save({"gradients": self.seen, "logged": logged, "state": state}, self.path(trainer.global_rank))

    def path(self, rank: int) -> Path:
        return self.folder / f"{rank}.pt"


class AllRanks(AmortisedLearning):
    """One process that draws what several ranks would, each from noise of its own."""

    ranks = 1

    def draw(self, count: int, stream: str, index: int | None = None) -> Sleep:
        index = self.trainer.fit_loop.total_batch_idx if index is None else index
        parts = []
        for rank in range(self.ranks):
            with seeded(self.device, 0, stream, rank, index):
                parts.append(self.generative.sleep(count // self.ranks, self.direct))
        return concatenate(parts)


def module(ranks: int, regression: str, objective: str) -> AmortisedLearning:
    """The learner of R processes (``ranks`` 1), or one that has the samples of several."""
    torch.manual_seed(0)
    learning = Learning(
        sleep_samples=ranks * SAMPLES,
        held_out=ranks * HELD_OUT,
        regression=REGRESSIONS[regression],
        penalties=[NormalPenalty("weight", scale=1.0)],
        averaging=0.9,
        regression_scope="rank" if ranks > 1 else "global",
        learning_rate=0.1,
        **OBJECTIVES[objective],
    )
    made = (AmortisedLearning if ranks == 1 else AllRanks)(LinearGaussian(), learning)
    made.ranks = ranks  # type: ignore[union-attr]
    return made


def assert_equal_to_one_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, regression: str, objective: str
) -> None:
    common: dict[str, Any] = {"max_steps": STEPS, "precision": "64-true", "use_distributed_sampler": False}
    several, one = Gradients(folder), Gradients(folder)
    forked(folder, [several], monkeypatch, devices=ranks, **common).fit(module(1, regression, objective), Data(ranks))
    seen = [torch.load(several.path(rank), weights_only=True) for rank in range(ranks)]
    trainer(folder, [one], **common).fit(module(ranks, regression, objective), Data(ranks))
    truth = torch.load(one.path(0), weights_only=True)
    assert len(truth["gradients"]) == STEPS
    for rank in seen:
        assert all(torch.equal(value, seen[0]["state"][name]) for name, value in rank["state"].items())
        assert set(rank["logged"]) == {"train/objective", "val/objective"}
        for step, expected in enumerate(truth["gradients"]):
            assert_close(rank["gradients"][step], expected)
        for name, value in truth["logged"].items():
            torch.testing.assert_close(rank["logged"][name].double(), value.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("regression", "objective"),
    [
        ("exact", "centred vector AL-A"),
        ("random features, intercept, median", "AL-A"),
        pytest.param("exact", "AL-F", marks=pytest.mark.slow),
        pytest.param("random features", "centred", marks=pytest.mark.slow),
        pytest.param("Nyström over ranks, intercept, median", "centred vector AL-A", marks=pytest.mark.slow),
    ],
)
def test_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regression: str, objective: str) -> None:
    assert_equal_to_one_process(tmp_path, monkeypatch, 2, regression, objective)


@pytest.mark.slow
@pytest.mark.parametrize("regression", ["exact", "random features", "Nyström"])
@pytest.mark.parametrize("objective", ["AL-F", "centred vector AL-A"])
def test_four_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regression: str, objective: str) -> None:
    assert_equal_to_one_process(tmp_path, monkeypatch, 4, regression, objective)


@pytest.mark.filterwarnings("ignore:step .* skipped")
@pytest.mark.parametrize(("method", "count"), [("AL-F", 20), pytest.param("centred AL-A", 10, marks=pytest.mark.slow)])
def test_a_nan_on_one_of_two_processes_skips_the_step_on_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, count: int
) -> None:
    model = image_model("gaussian", **METHODS[method], averaging=0.9, regression_scope="global")
    zero, one = two_processes(tmp_path, model, monkeypatch, PlantedOnRankOne(Planted(model, count)), max_steps=4)
    assert zero["skipped"] == one["skipped"] == 1
    for rank in (zero, one):
        assert equal(rank["parameters"][1], rank["parameters"][2])
        assert not equal(rank["parameters"][2], rank["parameters"][3])
    assert equal(zero["state"], one["state"])


def test_too_many_samples_stop_the_run_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KernelRidge, "most_pooled", 2 * SAMPLES - 1)
    with pytest.raises(ProcessRaisedException, match="sleep_samples 12 pool 24 of them"):
        forked(tmp_path, [], monkeypatch, max_steps=1).fit(module(1, "exact", "AL-F"), Data(2))
