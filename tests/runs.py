"""Small real runs for the tests: an image data module of given tensors, a small image model, a quiet trainer."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_alws.kernels import GaussianKernel
from lightning_alws.learning import Learning
from lightning_alws.models import ImageModel
from lightning_alws.networks import LinearFeatures, MLPDecoder
from lightning_alws.objectives import LogJointError, NaturalParameterError
from lightning_alws.regression import KernelRidge

# A given bandwidth spares every model the median over two million pairs.
FIXED = functools.partial(KernelRidge, kernel=functools.partial(GaussianKernel, bandwidth=4.0))
ADAPTIVE = functools.partial(
    KernelRidge,
    kernel=functools.partial(GaussianKernel, features=functools.partial(LinearFeatures, width=3), bandwidth=0.1),
)
METHODS: dict[str, dict[str, Any]] = {
    "AL-F": {},
    "AL-A": {"regression": ADAPTIVE, "kernel_objective": LogJointError()},
    "AL-A on natural parameters": {"regression": ADAPTIVE, "kernel_objective": NaturalParameterError()},
    "centred": {"centring": 1.0},
    "centred AL-A": {"regression": ADAPTIVE, "kernel_objective": LogJointError(), "centring": 1.0},
}


def image_model(
    likelihood: str = "bernoulli", shape: tuple[int, int, int] = (1, 8, 8), latent_dim: int = 2, **learning: Any
) -> ImageModel:
    """An ImageModel of some hundred parameters."""
    settings = {"sleep_samples": 20, "held_out": 10, "regression": FIXED} | learning
    decoder = functools.partial(MLPDecoder, hidden=[6])
    return ImageModel(
        latent_dim=latent_dim,
        decoder=decoder,
        learning=Learning(**settings),
        image_shape=shape,
        likelihood=likelihood,  # type: ignore[arg-type]
    )


class Images(pl.LightningDataModule):
    """Random images (16 for training, 6 for validation, 7 for test) in the space of the likelihood."""

    name = "Images"

    def __init__(
        self,
        likelihood: str = "bernoulli",
        shape: tuple[int, int, int] = (1, 8, 8),
        splits: dict[str, Tensor] | None = None,
        batch_size: int = 4,
    ) -> None:
        super().__init__()
        self.likelihood, self.image_shape, self.batch_size = likelihood, shape, batch_size
        generator = torch.Generator().manual_seed(7)
        drawn = {
            split: torch.rand(count, *shape, generator=generator)
            for split, count in (("train", 16), ("val", 6), ("test", 7))
        }
        if likelihood == "bernoulli":
            drawn = {split: x.round() for split, x in drawn.items()}
        else:
            drawn = {split: 2 * x - 1 for split, x in drawn.items()}
        self.splits = drawn if splits is None else splits

    def images(self, split: str) -> Tensor:
        return self.splits[split]

    def _loader(self, split: str) -> DataLoader:
        return DataLoader(self.images(split), batch_size=self.batch_size)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._loader("test")

    predict_dataloader = test_dataloader


class Numbers(pl.LightningDataModule):
    """Data that are no images: neither ``images`` nor ``image_shape``."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(8, 1, 8, 8), batch_size=4)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def trainer(folder: Path, callbacks: list[pl.Callback] | None = None, **changes: Any) -> pl.Trainer:
    """A quiet trainer on one CPU, at home in the folder; it keeps checkpoints only where a callback does."""
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "callbacks": callbacks or [],
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 4,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(part, pl.callbacks.ModelCheckpoint) for part in callbacks or []),
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**(settings | changes))


def forked(folder: Path, callbacks: list[pl.Callback], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> pl.Trainer:
    """A trainer of two forked processes, or of as many as ``devices`` says."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a forked process must not wait for threads it has not inherited
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    return trainer(folder, callbacks, **({"strategy": "ddp_fork", "devices": 2} | changes))


def named(module: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of the trained parameters by name."""
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


class SendSignal(pl.Callback):
    """Sends this process a signal at the end of a batch, as a user or a system would; in a process of that rank only.

    Args:
        number: of the signal.
        step: after which optimiser step.
        rank: of the process.
    """

    def __init__(self, number: int, step: int, rank: int = 0) -> None:
        self.number, self.step, self.rank = number, step, rank

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


class SpoilBatches(pl.Callback):
    """Fills batches with NaN, from one on; on that rank only.

    Args:
        first: number of the first, counted from 0.
        rank: of the process.
    """

    def __init__(self, first: int, rank: int = 0) -> None:
        self.first, self.rank = first, rank

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Tensor, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx >= self.first and trainer.global_rank == self.rank:
            batch.fill_(float("nan"))
