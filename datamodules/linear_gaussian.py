"""Data of a factor model with known parameters: x = Wz + b + noise of a scale for each dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.arrays import ArrayDataModule
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.noise import generator

NOISE_SCALES = (0.4, 1.0)  # σ_d is uniform between them; the entries of W and b are standard normal


class LinearGaussianData(ArrayDataModule):
    """x = Wz + b + σ ⊙ ε with z, ε ~ N(0, I): parameters and data drawn from the seed.

    Args:
        train_size: training observations.
        validation_size: validation observations.
        test_size: test observations.
        observed_dim: dimension of x.
        latent_dim: dimension of z.
        batch_size: training observations per step and process.
        eval_batch_size: validation, test or prediction observations per step and process.
        seed: of the parameters, the data and the order.

    Attributes:
        loadings: W (observed_dim, latent_dim).
        offset: b (observed_dim,).
        noise_scale: σ (observed_dim,).

    Raises:
        UserError: a size is below 1, or there are not less latents than observed dimensions.
    """

    def __init__(
        self,
        train_size: int = 5000,
        validation_size: int = 1000,
        test_size: int = 2000,
        observed_dim: int = 8,
        latent_dim: int = 3,
        batch_size: int = 200,
        eval_batch_size: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.save_hyperparameters(logger=False)
        check_at_least(
            "data", train_size=(train_size, 1), validation_size=(validation_size, 1), test_size=(test_size, 1)
        )
        if not 1 <= latent_dim < observed_dim:
            raise UserError(
                f"data.latent_dim is {latent_dim} and data.observed_dim {observed_dim}; give at least 1 latent, and "
                "less than there are observed dimensions."
            )
        self.split_sizes = {"train": train_size, "val": validation_size, "test": test_size}
        draws = generator(seed, "parameters")
        self.loadings = torch.randn(observed_dim, latent_dim, generator=draws)
        self.offset = torch.randn(observed_dim, generator=draws)
        least, greatest = NOISE_SCALES
        self.noise_scale = least + (greatest - least) * torch.rand(observed_dim, generator=draws)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self.offset.shape)

    @property
    def true_mean(self) -> Tensor:
        """b, float64 (D,)."""
        return self.offset.double()

    @property
    def true_covariance(self) -> Tensor:
        """WWᵀ + diag σ², float64 (D, D)."""
        weight = self.loadings.double()
        return weight @ weight.T + self.noise_scale.double().square().diag()

    def read(self) -> dict[str, Tensor]:
        """Each split drawn from a stream of its own."""
        return {split: self._draw(split, size) for split, size in self.split_sizes.items()}

    def _draw(self, split: str, size: int) -> Tensor:
        draws = generator(self.seed, "data", split)
        z = torch.randn(size, self.loadings.shape[1], generator=draws)
        noise = self.noise_scale * torch.randn(size, len(self.offset), generator=draws)
        return z @ self.loadings.T + self.offset + noise
