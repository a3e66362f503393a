"""What a factorisation of images has learnt: its factors as pictures, and noisy held-out images before and after.

Noise flips each pixel with a stated probability. Errors are mean squared ones per pixel against the clean image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor

from callbacks.figure import ExperimentFigure
from lightning_alws.baselines import LogisticNormalVAE
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.metrics.parts import hoyer_sparsity, spread
from lightning_alws.models.matrix_factorisation import MatrixFactorisation, Reconstruction
from lightning_alws.noise import generator, mix_seed

LEAST_PROBABILITY = 0.01  # PCA's outputs are kept in [0.01, 0.99] to have a cross-entropy at all
TILES = 100
SHOWN = 12
ACTIVE = 0.1  # a factor counts as used where its norm is at least this share of the largest


def flip(images: Tensor, probability: float, seed: int) -> Tensor:
    """Binary images with each pixel flipped with a probability; drawn on the CPU, the same on every machine."""
    draws = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where((draws < probability).to(images.device), 1 - images, images)


def squared_error(estimate: Tensor, clean: Tensor) -> float:
    """Mean over images and pixels of (estimate − clean)²."""
    return float((estimate - clean).square().mean())


def cross_entropy(estimate: Tensor, clean: Tensor) -> float:
    """Mean over images of −Σ_d log p(clean_d), in nats, for estimated probabilities inside (0, 1)."""
    log_prob = torch.where(clean > 0.5, estimate.log(), (-estimate).log1p())
    return -float(log_prob.flatten(1).sum(1).mean())


Factorisation = MatrixFactorisation | LogisticNormalVAE


class Denoising(ExperimentFigure):
    """Factors W as tiles, and clean, noisy and denoised images; the errors of the latter beside simple baselines.

    Reconstructions are of the posterior p(z|x) that the method at hand offers, E[μ(z)|x]; those with ``_decoded`` are
    μ at E[logit z|x]. Logged as ``val/…`` and ``test/…``:

    * ``reconstruction_error``, ``denoising_error``: mean squared error per pixel, given the clean image and the noisy;
    * ``hoyer``, ``spread``: mean Hoyer sparsity (1: one pixel, 0: flat) and mean distance, in pixels, of a factor's
      weight from its centre, over the factors in use; ``active_factors`` counts them.

    In the test also: ``noisy_error`` (of the noisy image itself), ``mean_image_error``, ``pca_reconstruction_error``
    and ``pca_denoising_error`` (principal components of the training images, clamped to [0, 1]), the cross-entropies in
    nats per image, sparsity and spread of the components, and ``known_noise_error``: for amortised learning,
    denoising by a regression on sleep samples that went through the same noise.

    Args:
        noise: probability with which a pixel is flipped.
        sleep_samples: N in the test, where the method draws any; a validation takes as many as training.
        components: of the PCA.
        val_images: at most so many images in a validation, the first.
        test_images: at most so many in the test.

    Raises:
        UserError: a number makes no sense, or the model is no factorisation of images.
    """

    def __init__(
        self,
        noise: float = 0.1,
        sleep_samples: int = 5000,
        components: int = 100,
        val_images: int = 500,
        test_images: int = 2000,
    ) -> None:
        if not 0 < noise < 0.5:
            raise UserError(f"Denoising.noise is {noise}; give a probability above 0 and below 0.5.")
        check_at_least(
            "Denoising",
            sleep_samples=(sleep_samples, 2),
            components=(components, 1),
            val_images=(val_images, 1),
            test_images=(test_images, 1),
        )
        self.noise, self.sleep_samples, self.components = noise, sleep_samples, components
        self.images = {"val": val_images, "test": test_images}
        self._pca: PCA | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a model that is no factorisation, and forget another run's data."""
        super().setup(trainer, pl_module, stage)
        if not isinstance(pl_module, Factorisation):
            raise UserError(
                "trainer.callbacks holds Denoising, which is made for MatrixFactorisation and LogisticNormalVAE, but "
                f"the model is {type(pl_module).__name__}; leave the callback out or change the model."
            )
        self._pca = None

    def provenance(self) -> dict[str, Any]:
        """Settings of the errors."""
        return {
            "denoising": {
                "flip_probability": self.noise,
                "sleep_samples": self.sleep_samples,
                "images": self.images,
                "pca_components": None if self._pca is None else int(self._pca.n_components_),
            }
        }

    def measure(self, module: Any, data: Any, split: str) -> dict[str, float]:
        """Errors, sparsity and spread; see the class."""
        clean = data.images(split)[: self.images[split]].to(module.dtype)
        noisy = flip(clean, self.noise, mix_seed("denoising", split))
        numbers = self._factors(module.evaluation_model.weight, data.image_shape)
        for name, x in (("reconstruction", clean), ("denoising", noisy)):
            result = self._reconstruct(module, x, split)
            numbers[f"{name}_error"] = squared_error(result.expected_mean, clean)
            numbers[f"{name}_error_decoded"] = squared_error(result.mean_at_expectation, clean)
            numbers[f"{name}_nats_decoded"] = cross_entropy(result.mean_at_expectation, clean)
        if split == "val":
            return numbers
        if isinstance(module, MatrixFactorisation):
            known = self._reconstruct(module, noisy, split, known_noise=True)
            numbers["known_noise_error"] = squared_error(known.expected_mean, clean)
            numbers["known_noise_error_decoded"] = squared_error(known.mean_at_expectation, clean)
        return numbers | self._baselines(data, clean, noisy)

    def _baselines(self, data: Any, clean: Tensor, noisy: Tensor) -> dict[str, float]:
        mean = data.images("train").mean(0, keepdim=True).to(clean.dtype).expand_as(clean)
        numbers = {
            "noisy_error": squared_error(noisy, clean),
            "mean_image_error": squared_error(mean, clean),
            "mean_image_nats": cross_entropy(bounded(mean), clean),
        }
        for name, x in (("reconstruction", clean), ("denoising", noisy)):
            estimate = self._project(data, x)
            numbers[f"pca_{name}_error"] = squared_error(estimate, clean)
            numbers[f"pca_{name}_nats"] = cross_entropy(bounded(estimate), clean)
        components = torch.from_numpy(self._fitted_pca(data).components_)
        shape = data.image_shape
        return numbers | {
            "pca_hoyer": float(hoyer_sparsity(components).mean()),
            "pca_spread": float(spread(components.unflatten(1, shape).abs().sum(1)).mean()),
        }

    @staticmethod
    def _factors(weight: Tensor, shape: tuple[int, int, int]) -> dict[str, float]:
        norms = weight.norm(dim=0)
        used = weight.T[norms >= ACTIVE * norms.max()]
        return {
            "active_factors": len(used),
            "hoyer": float(hoyer_sparsity(used).mean()),
            "spread": float(spread(used.unflatten(1, shape).sum(1)).mean()),
        }

    def _reconstruct(self, module: Factorisation, x: Tensor, split: str, known_noise: bool = False) -> Reconstruction:
        if isinstance(module, LogisticNormalVAE):
            return module.reconstruct(x)
        count = self.sleep_samples if split == "test" else None
        seed = mix_seed("denoising", split, "sleep")
        corrupt = (lambda sleep: flip(sleep, self.noise, seed)) if known_noise else None
        return module.reconstruct(x, sleep_samples=count, corrupt=corrupt)

    def _fitted_pca(self, data: Any) -> PCA:
        if self._pca is None:
            x = data.images("train").flatten(1).cpu().numpy()
            self._pca = PCA(min(self.components, *x.shape), random_state=0).fit(x)
        return self._pca

    def _project(self, data: Any, x: Tensor) -> Tensor:
        pca = self._fitted_pca(data)
        projected = pca.inverse_transform(pca.transform(x.flatten(1).cpu().numpy()))
        return torch.from_numpy(projected).to(x).clamp(0, 1).view_as(x)

    def draw(self, module: Any, data: Any, split: str) -> Figure:
        """Factors on the left, the largest first; images on the right."""
        images = data.images(split)
        chosen = torch.randperm(len(images), generator=generator("denoising", split, "shown"))[:SHOWN]
        clean = images[chosen.to(images.device)].to(module.dtype)
        noisy = flip(clean, self.noise, mix_seed("denoising", split, "shown"))
        rows = {
            "clean": clean,
            f"{100 * self.noise:g} % flipped": noisy,
            "E[μ(z)|x]": self._reconstruct(module, noisy, split).expected_mean,
        }
        if isinstance(module, MatrixFactorisation):
            rows["noise known"] = self._reconstruct(module, noisy, split, known_noise=True).expected_mean
        if split == "test":
            rows[f"PCA-{self._fitted_pca(data).n_components_}"] = self._project(data, noisy)
        return drawing(module.evaluation_model.weight, rows)


def bounded(estimate: Tensor) -> Tensor:
    """Probabilities in [0.01, 0.99]."""
    return estimate.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)


def drawing(weight: Tensor, rows: dict[str, Tensor]) -> Figure:
    """Factors (D, K) as tiles, each scaled by its own largest weight, beside named rows of images (n, C, H, W)."""
    shape = next(iter(rows.values())).shape[1:]
    order = weight.norm(dim=0).argsort(descending=True)[:TILES]
    tiles = weight.T[order].unflatten(1, shape).mean(1).cpu()
    tiles = tiles / tiles.amax((1, 2), keepdim=True)
    side = max(1, round(len(tiles) ** 0.5))
    figure = Figure(figsize=(14, 6))
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(1, 1.15)))
    left.suptitle(f"{len(tiles)} of {weight.shape[1]} factors W, each to its own scale", fontsize=10)
    for axes, tile in zip(left.subplots(-(-len(tiles) // side), side, squeeze=False).flat, tiles, strict=False):
        axes.imshow(tile.numpy(), cmap="gray_r", vmin=0, vmax=1)
    right.suptitle("held-out images", fontsize=10)
    panels = right.subplots(len(rows), SHOWN, squeeze=False)
    for line, (name, row) in zip(panels, rows.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for axes, image in zip(line, row, strict=False):
            axes.imshow(image.float().mean(0).cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
    for axes in figure.axes:
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure
