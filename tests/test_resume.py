"""A run cut at any step and resumed is bitwise the run that was not: every method, one process and two."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from runs import METHODS, SendSignal, forked, image_model, trainer
from test_interruption import same, state
from torch import Tensor

from callbacks import (
    FIDKID,
    LogLikelihood,
    ParameterTraces,
    RegressionDiagnostics,
    ResultsFile,
    RunCheckpoint,
    SampleGrid,
)
from datamodules.loader import DeviceDataModule
from lightning_alws.baselines import WGANGP, ImageVAE
from lightning_alws.checkpoints import AtomicCheckpointIO
from lightning_alws.metrics.extractors import RandomFeatures
from lightning_alws.models import ImageModel
from lightning_alws.networks import MLPCritic, MLPDecoder, MLPFeatures

SHAPE = (1, 8, 8)
STEPS = 9


class Rows(DeviceDataModule):
    """So many random binary images for training, in batches of five, and 6 for validation and test."""

    image_shape, likelihood = SHAPE, "bernoulli"

    def __init__(self, count: int) -> None:
        super().__init__(5, 4, 0)
        self.count = count

    def read(self) -> dict[str, Tensor]:
        x = torch.rand(self.count + 12, *SHAPE, generator=torch.Generator().manual_seed(7)).round()
        return {"train": x[:-12], "val": x[-12:-6], "test": x[-6:]}

    def images(self, split: str) -> Tensor:
        return self.rows(split)


class Jittered(ImageModel):
    """A user's model: draws from the global generators where nobody seeds them, in training and in validation."""

    def observe(self, batch: Tensor) -> Tensor:
        noise = torch.rand_like(batch) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return (batch + noise > 1.5).float()

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        super().validation_step(self.observe(x), batch_idx)


def jittered() -> Jittered:
    model = image_model(averaging=0.9)
    return Jittered(**{name: model.hparams[name] for name in ("latent_dim", "decoder", "learning")},
                    image_shape=SHAPE, likelihood="bernoulli")  # fmt: skip


RIVAL: dict[str, Any] = {"latent_dim": 2, "decoder": functools.partial(MLPDecoder, hidden=[6]), "averaging": 0.9,
                         "image_shape": SHAPE, "likelihood": "bernoulli"}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "AL-F": lambda: image_model(averaging=0.9),
    "AL-A": lambda: image_model(averaging=0.9, **METHODS["AL-A"]),
    "VAE": lambda: ImageVAE(functools.partial(MLPFeatures, hidden=[], width=8), **RIVAL),
    "WGAN-GP": lambda: WGANGP(functools.partial(MLPCritic, hidden=[8]), **RIVAL),
    "a user's": jittered,
}


def session(
    folder: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    rows: int = 24,
    processes: int = 1,
    steps: int = STEPS,
    checkpoint: Path | None = None,
    sender: pl.Callback | None = None,
    measures: list[pl.Callback] | None = None,
    **changes: Any,
) -> None:
    """One session of a run, begun or resumed, validated every three steps, with all that a run has."""
    torch.manual_seed(0 if checkpoint is None else 99)  # what a resumed run starts from must not matter
    random.seed(len(str(checkpoint)))
    model = MODELS[name]()
    measures = [LogLikelihood(num_samples=50, val_samples=50)] if measures is None else measures
    callbacks: list[pl.Callback] = [*measures, ResultsFile(), *([sender] if sender else []), RunCheckpoint(None)]
    settings: dict[str, Any] = {"max_steps": steps, "max_epochs": -1, "val_check_interval": 3,
                                "check_val_every_n_epoch": None, "plugins": [AtomicCheckpointIO()],
                                "log_every_n_steps": 1} | changes  # fmt: skip
    run = (
        trainer(folder, callbacks, **settings) if processes == 1 else forked(folder, callbacks, monkeypatch, **settings)
    )
    run.fit(model, datamodule=Rows(rows), ckpt_path=checkpoint, weights_only=True)


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, int], Path]:
    """The folder of a run that nobody cut, of a method, so many images and processes; made when first asked for."""
    made: dict[tuple[str, int, int], Path] = {}

    def run(name: str, rows: int, processes: int) -> Path:
        asked = (name, rows, processes)
        if asked not in made:
            folder = tmp_path_factory.mktemp("uncut")
            with pytest.MonkeyPatch.context() as monkeypatch:
                session(folder, name, monkeypatch, rows, processes)
            made[asked] = folder
        return made[asked]

    return run


TWICE = ("AL-F",)  # with two processes; the others are marked slow


@pytest.mark.parametrize(
    ("name", "processes"),
    [
        pytest.param(name, processes, marks=() if processes == 1 or name in TWICE else pytest.mark.slow)
        for name in MODELS
        for processes in (1, 2)
    ],
)
def test_resumed_in_the_middle_of_an_epoch(
    uncut: Callable[[str, int, int], Path], tmp_path: Path, monkeypatch, name: str, processes: int
) -> None:
    """Weights, averaged ones, kernel, optimisers and figures; 24 images are five batches, or three of each process."""
    whole, cut = uncut(name, 24, processes), tmp_path / "cut"
    session(cut, name, monkeypatch, processes=processes, steps=4)
    session(cut, name, monkeypatch, processes=processes, checkpoint=cut / "checkpoints" / "last.ckpt")
    one, two = state(whole), state(cut)
    assert any(key.startswith("averaged.") for key in one["state_dict"])
    assert same(one, two)
    assert {"val/log_likelihood"} < set(figures(cut))
    assert figures(whole) == figures(cut)


@pytest.mark.parametrize(
    ("name", "rows", "step"),
    [
        ("WGAN-GP", 24, 4),  # within an epoch of three batches
        pytest.param("WGAN-GP", 24, 6, marks=pytest.mark.slow),  # at its end, where a validation is due
        pytest.param("VAE", 24, 5, marks=pytest.mark.slow),
        pytest.param("AL-F", 24, 1, marks=pytest.mark.slow),
        pytest.param("a user's", 24, 5, marks=pytest.mark.slow),
        pytest.param("AL-A", 10, 4, marks=pytest.mark.slow),  # epochs of one batch, shorter than between validations
        pytest.param("AL-A", 14, 5, marks=pytest.mark.slow),  # of two, the second of which is smaller
    ],
)
def test_a_signal_to_one_of_two_processes(
    uncut: Callable[[str, int, int], Path], tmp_path: Path, monkeypatch, name: str, rows: int, step: int
) -> None:
    """Both end after the same batch, saved; resumed, the run is the one that nobody stopped."""
    whole = uncut(name, rows, 2)
    cut, sender = tmp_path / "cut", SendSignal(signal.SIGTERM, step, rank=1)
    with pytest.raises(Exception, match=f"stopped by SIGTERM after step {step}"):
        session(cut, name, monkeypatch, rows, 2, sender=sender)
    assert state(cut)["global_step"] == step
    stopped = json.loads((cut / "results.json").read_text())
    assert (stopped["status"], stopped["error"][:32]) == ("interrupted", "Interrupted: stopped by SIGTERM ")
    session(cut, name, monkeypatch, rows, 2, checkpoint=cut / "checkpoints" / "last.ckpt")
    assert same(state(whole), state(cut))
    assert figures(whole) == figures(cut)


class InValidation(pl.Callback):
    """Sends the second process SIGTERM in the validation after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, 1):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step", "ends"), [("WGAN-GP", 3, 4), ("VAE", 6, 7), ("AL-A", 9, 9)])
def test_a_signal_to_one_of_two_processes_in_a_validation(
    uncut: Callable[[str, int, int], Path], tmp_path: Path, monkeypatch, name: str, step: int, ends: int
) -> None:
    """Between two batches, where only one knows of it; in the last validation, after which no batch comes, too."""
    whole, cut = uncut(name, 24, 2), tmp_path / "cut"
    with pytest.raises(Exception, match=f"stopped by SIGTERM after step {ends}"):
        session(cut, name, monkeypatch, processes=2, sender=InValidation(step))
    assert state(cut)["global_step"] == ends
    session(cut, name, monkeypatch, processes=2, checkpoint=cut / "checkpoints" / "last.ckpt")
    assert same(state(whole), state(cut))
    assert figures(whole) == figures(cut)


@pytest.mark.parametrize(
    "name", ["a user's", *(pytest.param(one, marks=pytest.mark.slow) for one in MODELS if one != "a user's")]
)
def test_what_is_measured_changes_no_training(tmp_path: Path, monkeypatch, name: str) -> None:
    """No validation and no figure, or all of them every second step: bitwise the same parameters and optimiser."""
    some = [
        LogLikelihood(num_samples=50, val_samples=50), SampleGrid(rows=2), ParameterTraces(),
        FIDKID(val_samples=6, num_samples=6, kid_subsets=2, kid_subset_size=2, extractor=RandomFeatures(width=4)),
        *([RegressionDiagnostics(every_n_steps=2)] if name in ("AL-F", "AL-A", "a user's") else []),
    ]  # fmt: skip
    session(tmp_path / "none", name, monkeypatch, steps=6, measures=[], limit_val_batches=0, log_every_n_steps=50)
    session(tmp_path / "all", name, monkeypatch, steps=6, measures=some, val_check_interval=2, num_sanity_val_steps=2)
    assert {"val/fid_samples", "val/log_likelihood"} <= set(figures(tmp_path / "all"))
    assert not any(figure.startswith("val/") for figure in figures(tmp_path / "none"))
    assert same(state(tmp_path / "none"), state(tmp_path / "all"))


def test_a_users_draws_are_others_in_each_batch(tmp_path: Path, monkeypatch) -> None:
    """And in each validation the same."""
    drawn: dict[bool, list[float]] = {True: [], False: []}
    before = Jittered.observe

    def observe(self: Jittered, batch: Tensor) -> Tensor:
        drawn[self.trainer.training].append(float(torch.rand(())))
        return before(self, batch)

    monkeypatch.setattr(Jittered, "observe", observe)
    session(tmp_path, "a user's", monkeypatch, steps=6)
    training, validation = drawn[True][1:], drawn[False]  # the first is that of the check of the data
    assert len(set(training)) == len(training) == 6
    assert validation[:2] == validation[2:]
    assert len(set(validation)) == 2
