"""Observations of the softplus toy at a known ‖b‖ and σ."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from datamodules.arrays import ArrayDataModule
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.noise import generator


class SoftplusData(ArrayDataModule):
    """x ~ N(softplus(‖b‖u) − ‖b‖², σ²) with u ~ N(0, 1), each of shape (1,).

    Args:
        norm: ‖b‖.
        noise_scale: σ.
        train_size: how many observations are for training.
        validation_size: how many are for validation.
        test_size: how many are for the test.
        batch_size: training observations per step and process.
        eval_batch_size: validation, test or prediction observations per step and process.
        seed: of the draws and the order.

    Raises:
        UserError: ``norm`` or ``noise_scale`` is not positive, or a size negative.
    """

    def __init__(
        self,
        norm: float = 1.0,
        noise_scale: float = 0.3,
        train_size: int = 5000,
        validation_size: int = 1000,
        test_size: int = 1000,
        batch_size: int = 200,
        eval_batch_size: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.save_hyperparameters(logger=False)
        for name, value in (("norm", norm), ("noise_scale", noise_scale)):
            if not value > 0:
                raise UserError(f"data.{name} is {value}; give a positive number, such as 0.5.")
        check_at_least(
            "data", train_size=(train_size, 1), validation_size=(validation_size, 0), test_size=(test_size, 0)
        )
        self.norm, self.noise_scale = norm, noise_scale
        self.counts = {"train": train_size, "val": validation_size, "test": test_size}

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (1,)

    def read(self) -> dict[str, torch.Tensor]:
        """The three splits, drawn afresh from the seed."""
        splits = {}
        for split, count in self.counts.items():
            u, noise = torch.randn(2, count, 1, generator=generator(self.seed, "softplus", split))
            splits[split] = softplus(self.norm * u) - self.norm**2 + self.noise_scale * noise
        return splits
