"""Series of a Gaussian process with known hyperparameters, observed with noise on a regular grid."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.arrays import ArrayDataModule
from lightning_alws.errors import check_at_least
from lightning_alws.gaussian_process import Hyperparameters
from lightning_alws.noise import generator


class GaussianProcessSeries(ArrayDataModule):
    """x = z + σε with z ~ N(0, K(ℓ, s)), ε ~ N(0, I): independent series on the same grid, drawn from the seed.

    Args:
        points: T, one sampling interval apart.
        lengthscale: ℓ, in sampling intervals.
        scale: s, the process's standard deviation.
        noise: σ, the noise's.
        train_size: training series.
        validation_size: validation series.
        test_size: test series.
        batch_size: training series per step and process.
        eval_batch_size: validation, test or prediction series per step and process.
        seed: of the data and their order.

    Attributes:
        truth: the hyperparameters.

    Raises:
        UserError: a size or a hyperparameter makes no sense.
    """

    def __init__(
        self,
        points: int = 20,
        lengthscale: float = 3.0,
        scale: float = 1.5,
        noise: float = 0.5,
        train_size: int = 1000,
        validation_size: int = 200,
        test_size: int = 500,
        batch_size: int = 200,
        eval_batch_size: int = 500,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.save_hyperparameters(logger=False)
        check_at_least(
            "data",
            points=(points, 2),
            train_size=(train_size, 1),
            validation_size=(validation_size, 1),
            test_size=(test_size, 1),
        )
        self.truth = Hyperparameters(lengthscale, scale, noise)
        self.truth.check("data")
        self.points = points
        self.split_sizes = {"train": train_size, "val": validation_size, "test": test_size}

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.points,)

    def latents(self, split: str) -> Tensor:
        """z of a split, noise-free, float32 (n, T), on the CPU; drawn anew, and the same each time."""
        covariance, _ = self.truth.covariance(self.points)
        draws = generator(self.seed, "latents", split)
        white = torch.randn(self.split_sizes[split], self.points, generator=draws, dtype=torch.float64)
        return (white @ torch.linalg.cholesky(covariance).T).float()

    def read(self) -> dict[str, Tensor]:
        """Latents and noise, each from a stream of its own in each split."""
        splits = {}
        for split in self.split_sizes:
            z = self.latents(split)
            noise = torch.randn(z.shape, generator=generator(self.seed, "noise", split))
            splits[split] = z + self.truth.noise * noise
        return splits
