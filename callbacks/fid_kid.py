"""Fréchet and kernel distance between a model's images and real ones, after each validation and in the test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch import Tensor

from callbacks.image_data import count_images, has_labels, some_images
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.metrics.distances import frechet_distance, kernel_distance
from lightning_alws.metrics.extractors import Extractor, ExtractorData, FeatureExtractor, RandomFeatures
from lightning_alws.metrics.inception import InceptionFeatures  # noqa: F401 (known by its short name in configs)
from lightning_alws.metrics.lenet import LeNetFeatures
from lightning_alws.noise import generator, seeded

LEAST_IMAGES = 4  # two for a covariance, two for an unbiased MMD of half of them
CHUNK = 500
COLUMNS = 4096  # pixels shuffled at once


class FIDKID(Callback):
    """Logs ``fid_samples``, ``kid_samples``, ``fid_means`` and ``kid_means``, each under ``val/`` and ``test/``.

    The features are those of ``extractor``, fed with real and generated images in the space of the data: by default a
    LeNet trained once on the labels of the data set at hand (:mod:`lightning_alws.metrics.lenet`), or a network of
    fixed random weights where there are none (:mod:`lightning_alws.metrics.extractors`). ``samples`` are draws
    x ~ p(x|z), ``means`` are E[x|z]. ``test/fid_floor`` and ``test/kid_floor`` compare training with test images: what
    a perfect model would get; ``test/fid_pixels`` and ``test/kid_pixels`` are those of the independent-pixel model
    fitted to the training images, which any model with latents should beat; ``test/fid_gaussian`` and
    ``test/kid_gaussian``, for images that are not binary, those of the Gaussian with mean and covariance of the
    training images. As many real images as generated ones are compared, since FID falls with their number.

    The same noise serves every validation, so that the figures of a run can be compared. All processes generate their
    share, gather the features once and compute the same figures. Does nothing where the data have no ``images``, the
    model makes no images, or the run is a sanity check or ``fast_dev_run``.

    Args:
        num_samples: images compared in the test, or as many as the test set has.
        val_samples: images compared in a validation, or as many as the validation set has; 0 for none.
        feature_width: features of the default LeNet; at most 64 for fewer than 5000 training images.
        extractor: makes the features: LeNetFeatures, RandomFeatures, PrincipalComponents, InceptionFeatures.
        kid_subset_size: images in one subset, or half of those compared.
        kid_subsets: number of subsets.
        cache_dir: where trained LeNets are kept; None for ``$ALWS_CACHE`` or ``~/.cache/alws``.
        seed: of the noise and of the choice of real images.

    Raises:
        UserError: a count makes no sense, a split has fewer than four images, or the extractor cannot be had.
    """

    def __init__(
        self,
        num_samples: int = 10_000,
        val_samples: int = 2_000,
        feature_width: int = 84,
        kid_subset_size: int = 1000,
        kid_subsets: int = 100,
        cache_dir: str | None = None,
        seed: int = 0,
        extractor: FeatureExtractor | None = None,
    ) -> None:
        check_at_least(
            "fid_kid",
            num_samples=(num_samples, LEAST_IMAGES),
            val_samples=(val_samples, LEAST_IMAGES if val_samples else 0),
            feature_width=(feature_width, 1),
            kid_subset_size=(kid_subset_size, 2),
            kid_subsets=(kid_subsets, 1),
        )
        self.num_samples = num_samples
        self.val_samples = val_samples
        self.feature_width = feature_width
        self.kid_subset_size = kid_subset_size
        self.kid_subsets = kid_subsets
        self.cache_dir = cache_dir
        self.seed = seed
        self.extractor = extractor
        self.figures: dict[str, float] = {}
        # Held here and not by the module, whose state_dict and device they must not share.
        self._extractor: Extractor | None = None
        self._real: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._subset_sizes: dict[str, int] = {}

    def switched_off(self, trainer: pl.Trainer) -> dict[str, str]:
        """How the names of figures begin that no validation will have, and the setting that says so."""
        return {} if self.val_samples else dict.fromkeys(("val/fid_", "val/kid_"), "fid_kid.val_samples")

    def too_large(self) -> str:
        """Where memory ran out, and what takes less; the end of a sentence."""
        return (
            f"in the figures of fid_kid, with at most {self.val_samples} images in a validation and {self.num_samples} "
            "in the test; lower fid_kid.val_samples or fid_kid.num_samples, and go on with --ckpt_path last."
        )

    def provenance(self) -> dict[str, Any]:
        """What the figures rest on; empty before the first ones."""
        if self._extractor is None or not self._counts:
            return {}
        return {
            "fid_kid": {
                "extractor": self._extractor.name,
                "extractor_hash": self._extractor.hash,
                "extractor_accuracy": self._extractor.accuracy,
                "feature_width": self._extractor.width,
                "resize": self._extractor.resize,
                "images_compared": dict(self._counts),
                "kid_subset_size": dict(self._subset_sizes),
                "kid_subsets": self.kid_subsets,
                "seed": self.seed,
            }
        }

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget another run's features."""
        self._extractor, self._real = None, {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find mistakes, and train the LeNet if need be, before the run rather than after its first epoch."""
        if trainer.enable_validation and self.val_samples and self._applies(trainer, pl_module):
            self._count(trainer, "val")
            self._prepare(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the validation's figures, in time for a checkpoint that monitors one of them."""
        if self.val_samples and self._applies(trainer, pl_module):
            self._run(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the test's figures and the floor."""
        if self._applies(trainer, pl_module):
            self._run(trainer, pl_module, "test")

    def _applies(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        data = trainer.datamodule  # type: ignore[attr-defined]
        model: Any = getattr(pl_module, "evaluation_model", None)
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        if not all(hasattr(data, name) for name in ("image_shape", "images")):
            return False
        if not all(hasattr(model, name) for name in ("sample_prior", "likelihood")):
            return False
        with torch.no_grad(), seeded(pl_module.device, self.seed):
            likelihood = model.likelihood(model.sample_prior(1))
        shape = getattr(getattr(likelihood, "mean", None), "shape", None)
        return shape == (1, *data.image_shape) and hasattr(likelihood, "sample")

    def _count(self, trainer: pl.Trainer, split: str) -> int:
        available = count_images(trainer.datamodule, split)  # type: ignore[attr-defined]
        if available < LEAST_IMAGES:
            raise UserError(
                f"FID and KID need at least {LEAST_IMAGES} images, but the {split} split has {available}; "
                f"give it more (for the validation split, fid_kid.val_samples=0 turns them off)."
            )
        return min(self.val_samples if split == "val" else self.num_samples, available)

    @torch.inference_mode(False)
    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Extractor:
        """The extractor on the module's device; trained, or read, by one process and sent to the others."""
        if self._extractor is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            found: Extractor | None = None
            if trainer.is_global_zero:
                labelled = has_labels(data)
                default = LeNetFeatures(self.feature_width) if labelled else RandomFeatures()
                source = ExtractorData(
                    name=data.name,
                    likelihood=getattr(data, "likelihood", "gaussian"),
                    count=lambda split: count_images(data, split),
                    images=lambda split, rows: some_images(data, split, rows),
                    labels=data.labels if labelled else None,
                    cache_dir=self.cache_dir,
                )
                found = (self.extractor or default).build(source)
            extractor = cast(Extractor, trainer.strategy.broadcast(found))
            self._extractor = replace(extractor, module=extractor.module.to(pl_module.device))
        return self._extractor

    def _run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str) -> None:
        count = self._count(trainer, split)
        extractor = self._prepare(trainer, pl_module)
        real = self._real_features(trainer, extractor, split, count)
        samples, means = self._generated_features(trainer, pl_module, extractor, count)
        self._compare(f"{split}/{{}}_samples", split, real, samples)
        self._compare(f"{split}/{{}}_means", split, real, means)
        self._counts[split], self._subset_sizes[split] = count, self._subset_size(count)
        if split == "test":
            train = self._real_features(trainer, extractor, "train", count)
            self._compare("test/{}_floor", split, real[: len(train)], train)
            compared = real[: len(train)]
            self._compare("test/{}_pixels", split, compared, self._independent_pixels(trainer, extractor, count))
            if getattr(trainer.datamodule, "likelihood", "bernoulli") != "bernoulli":  # type: ignore[attr-defined]
                self._compare("test/{}_gaussian", split, compared, self._fitted_gaussian(trainer, extractor, count))
            self._counts["floor"] = len(train)
        for name, value in self.figures.items():
            if name.startswith(f"{split}/"):
                pl_module.log(name, value, sync_dist=True)

    def _subset_size(self, count: int) -> int:
        return min(self.kid_subset_size, count // 2)

    def _compare(self, name: str, split: str, real: Tensor, fake: Tensor) -> None:
        self.figures[name.format("fid")] = frechet_distance(real, fake)
        self.figures[name.format("kid")], _ = kernel_distance(
            real, fake, self._subset_size(len(real)), self.kid_subsets, generator(self.seed, "kid", split)
        )

    def _real_images(self, trainer: pl.Trainer, split: str, count: int) -> Tensor:
        """``count`` real images chosen by the seed."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows = torch.randperm(count_images(data, split), generator=generator(self.seed, "fid", split))[:count]
        return some_images(data, split, rows)

    def _real_features(self, trainer: pl.Trainer, extractor: Extractor, split: str, count: int) -> Tensor:
        """Features of ``count`` real images, computed once."""
        if split not in self._real:
            self._real[split] = _for_distances(extractor.features(self._real_images(trainer, split, count)))
        return self._real[split]

    def _independent_pixels(self, trainer: pl.Trainer, extractor: Extractor, count: int) -> Tensor:
        """Features of training images whose every pixel is shuffled between images, by itself."""
        images = self._real_images(trainer, "train", count)
        flat = images.flatten(1)
        with seeded(flat.device, self.seed, "fid", "pixels"):
            parts = [part.gather(0, torch.rand_like(part).argsort(0)) for part in flat.split(COLUMNS, dim=1)]
        return _for_distances(extractor.features(torch.cat(parts, dim=1).view(images.shape)))

    def _fitted_gaussian(self, trainer: pl.Trainer, extractor: Extractor, count: int) -> Tensor:
        """Features of draws from the Gaussian with mean and covariance of ``count`` training images.

        With rows x_i − mean of a matrix X of n images, Xᵀ ε / √(n − 1), ε ~ N(0, I_n), has their covariance exactly.
        """
        images = self._real_images(trainer, "train", count)
        centred = images.flatten(1).float()
        mean = centred.mean(0)
        centred = (centred - mean) / (len(images) - 1) ** 0.5
        features = []
        with seeded(images.device, self.seed, "fid", "gaussian"):
            for start in range(0, len(images), CHUNK):
                noise = torch.randn(min(CHUNK, len(images) - start), len(images), device=images.device)
                drawn = (mean + noise @ centred).view(-1, *images.shape[1:])
                features.append(extractor.features(drawn))
        return _for_distances(torch.cat(features))

    def _generated_features(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, extractor: Extractor, count: int
    ) -> tuple[Tensor, Tensor]:
        """Features of ``count`` samples and of their means, gathered from all processes, (count, width) each."""
        model: Any = pl_module.evaluation_model
        share = -(-count // trainer.world_size)
        parts = []
        for chunk, start in enumerate(range(0, share, CHUNK)):
            with torch.no_grad(), seeded(pl_module.device, self.seed, "fid", trainer.global_rank, chunk):
                likelihood = model.likelihood(model.sample_prior(min(CHUNK, share - start)))
                pair = [extractor.features(likelihood.sample()), extractor.features(likelihood.mean)]
                parts.append(torch.cat(pair, dim=1))
        gathered = pl_module.all_gather(torch.cat(parts))  # (processes, share, 2 width), or (share, 2 width) for one
        features = _for_distances(gathered.reshape(-1, 2 * extractor.width)[:count])  # type: ignore[union-attr]
        return features[:, : extractor.width], features[:, extractor.width :]


def _for_distances(features: Tensor) -> Tensor:
    """Features where float64 is to be had: on CUDA, otherwise on the CPU."""
    return features if features.device.type == "cuda" else features.cpu()
