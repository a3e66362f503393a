"""Sparse sources mixed by filters of natural images: data whose true filters are known.

    x = (A z − mean) / std + noise,   z_i ~ Laplace(0, 1),   noise ~ N(0, 0.1² I)

The columns of A are FastICA's filters of natural patches; mean and std are taken pixel by pixel over the training data,
so that a model x = Wz + noise has to find W = diag(1/std) A. Source: the ICA experiment of kevin-w-li/al-ws.
"""

from __future__ import annotations

import torch
from sklearn.decomposition import FastICA
from torch import Tensor

from datamodules.arrays import ArrayDataModule
from datamodules.patches import check_default, draw_patches, standardise
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.noise import generator, mix_seed

FAST_ICA_ITERATIONS = 1000


class ICAMixtures(ArrayDataModule):
    """Observations (n, patch_size²) of ``num_sources`` Laplace sources mixed by natural filters.

    Args:
        source: photographs: a folder or tar of image files, or of van Hateren's ``.iml``; by default the two that
            scikit-learn brings along.
        patch_size: height and width of a filter in pixels.
        num_sources: how many sources and filters.
        num_patches: natural patches that the filters are made from; the data hold none of them.
        noise_scale: standard deviation of the noise, for data of unit variance.
        batch_size: training observations per step and process.
        eval_batch_size: validation, test or prediction observations per step and process.
        train_size: training observations.
        validation_size: validation observations.
        test_size: test observations.
        seed: of patches, filters, sources, noise and the order.

    Attributes:
        mixing: the true filters W = diag(1/std) A, one a column, (patch_size², num_sources); once the data are read.

    Raises:
        UserError: a number makes no sense, or the photographs are missing, broken, too small or too uniform.
    """

    mixing: Tensor

    def __init__(
        self,
        source: str | None = None,
        patch_size: int = 16,
        num_sources: int = 36,
        num_patches: int = 10_000,
        noise_scale: float = 0.1,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        train_size: int = 100_000,
        validation_size: int = 1_000,
        test_size: int = 1_000,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.save_hyperparameters(logger=False)
        check_at_least(
            "data",
            patch_size=(patch_size, 2),
            num_sources=(num_sources, 1),
            train_size=(train_size, 2),
            validation_size=(validation_size, 0),
            test_size=(test_size, 0),
            noise_scale=(noise_scale, 0),
        )
        # Patches without their mean have one dimension less than pixels.
        if num_sources >= patch_size**2:
            raise UserError(
                f"data.num_sources is {num_sources}, but patches of {patch_size} x {patch_size} pixels without their "
                f"mean allow {patch_size**2 - 1} at most; lower it, or raise data.patch_size."
            )
        if num_patches <= patch_size**2:
            raise UserError(
                f"data.num_patches is {num_patches}; give more than the {patch_size**2} pixels of a patch, such as "
                "10000."
            )
        check_default(source, "data.patch_size", patch_size)
        self.source, self.patch_size, self.num_sources = source, patch_size, num_sources
        self.num_patches, self.noise_scale = num_patches, noise_scale
        self.split_sizes = {"train": train_size, "val": validation_size, "test": test_size}

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.patch_size**2,)

    def read(self) -> dict[str, Tensor]:
        """Draw the three splits, and set ``mixing``."""
        filters = self.filters()
        clean = {
            split: laplace(size, self.num_sources, generator(self.seed, "sources", split)) @ filters.T
            for split, size in self.split_sizes.items()
        }
        mean, std = clean["train"].mean(0), clean["train"].std(0, correction=0)
        self.mixing = filters / std[:, None]
        return {split: self._observe((rows - mean) / std, split) for split, rows in clean.items()}

    def filters(self) -> Tensor:
        """A: FastICA's filters of natural patches, each less its mean and of norm 1, (patch_size², num_sources)."""
        patches = standardise(
            draw_patches(self.source, self.patch_size, self.num_patches, generator(self.seed, "patches"))
        )
        rows = patches.flatten(1).double()
        if int(torch.linalg.matrix_rank(rows)) < self.num_sources:
            raise UserError(
                f"data.source is {self.source}, whose patches are too much alike for {self.num_sources} filters; give "
                "photographs with more structure, or lower data.num_sources."
            )
        ica = FastICA(
            self.num_sources,
            whiten="unit-variance",
            max_iter=FAST_ICA_ITERATIONS,
            random_state=mix_seed(self.seed, "filters") % 2**32,
        )
        mixing = torch.from_numpy(ica.fit(rows.numpy()).mixing_).float()
        mixing = mixing - mixing.mean(0)
        return mixing / mixing.norm(dim=0)

    def _observe(self, clean: Tensor, split: str) -> Tensor:
        return clean + self.noise_scale * torch.randn(clean.shape, generator=generator(self.seed, "noise", split))


def laplace(count: int, dim: int, source: torch.Generator) -> Tensor:
    """z ~ Laplace(0, 1), shape (count, dim): an exponential with a random sign."""
    size = torch.empty(count, dim).exponential_(generator=source)
    return torch.where(torch.rand(count, dim, generator=source) < 0.5, -size, size)
