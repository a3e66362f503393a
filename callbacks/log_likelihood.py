"""Log-likelihood of held-out data, by the estimator that can be trusted for the model at hand."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn

from lightning_alws.errors import check_at_least
from lightning_alws.metrics.likelihood import (
    LikelihoodEstimate,
    fit_encoder,
    importance_log_likelihood,
    monte_carlo_log_likelihood,
)
from lightning_alws.networks import ConvFeatures, MLPFeatures
from lightning_alws.noise import global_seed, seeded

RELIABLE = 10.0  # effective prior samples per image below which Monte Carlo over the prior is marked unreliable
PILOT_SAMPLES = 20_000


class LogLikelihood(Callback):
    """Logs ``val/log_likelihood`` and ``test/log_likelihood``, the mean of log p_θ(x) in nats per image.

    The test estimate averages p(x|z) over prior samples. Where a pilot of 20 000 shows that a typical image would
    rest on fewer than ten of them, it is replaced by importance sampling with a Gaussian encoder that is fitted, for
    this purpose only, to sleep samples; not where latents are discrete or on a curve, to which no Gaussian can be
    fitted. Both are lower bounds in expectation; ``test/effective_samples`` is the median over images of (Σw)²/Σw², and
    ``test/log_likelihood_reliable`` is 1 if it is at least ten. Does nothing for models without ``evaluation_model`` or
    data without ``images``.

    Args:
        num_samples: prior samples in the test.
        val_samples: prior samples in a validation; 0 for no estimate there.
        max_images: at most so many images are used, the first of the split.
        encoder_steps: steps the importance-sampling encoder is fitted for; 0 keeps to prior samples.
        importance_samples: posterior samples per image.

    Raises:
        UserError: a count makes no sense.
    """

    def __init__(
        self,
        num_samples: int = 200_000,
        val_samples: int = 20_000,
        max_images: int = 1_000,
        encoder_steps: int = 2_000,
        importance_samples: int = 500,
    ) -> None:
        check_at_least(
            "log_likelihood",
            num_samples=(num_samples, 1),
            val_samples=(val_samples, 0),
            max_images=(max_images, 1),
            encoder_steps=(encoder_steps, 0),
            importance_samples=(importance_samples, 1),
        )
        self.num_samples = num_samples
        self.val_samples = val_samples
        self.max_images = max_images
        self.encoder_steps = encoder_steps
        self.importance_samples = importance_samples
        self._provenance: dict[str, Any] = {}

    def provenance(self) -> dict[str, Any]:
        """How the test figure was made."""
        return self._provenance

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A quick Monte Carlo estimate."""
        if not self.val_samples or not self._applies(trainer, pl_module):
            return
        with seeded(pl_module.device, global_seed(), "log_likelihood", "val"):
            model: Any = pl_module.evaluation_model
            x = self._images(trainer, pl_module, "val")
            estimate = monte_carlo_log_likelihood(model, x, self.val_samples, self._chunk(trainer))
        self._log(pl_module, "val", estimate)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The estimate that is reported."""
        if not self._applies(trainer, pl_module):
            return
        model: Any = pl_module.evaluation_model
        x, chunk = self._images(trainer, pl_module, "test"), self._chunk(trainer)
        with seeded(pl_module.device, global_seed(), "log_likelihood", "test"):
            pilot = monte_carlo_log_likelihood(model, x, min(PILOT_SAMPLES, self.num_samples), chunk)
            # Where few samples carry the estimate, ten times as many rarely make them ten times as many.
            hopeful = pilot.effective_samples.median() >= RELIABLE
            if hopeful or not self.encoder_steps or not model.latents_are_real:
                method, samples = "prior samples", self.num_samples
                estimate = monte_carlo_log_likelihood(model, x, samples, chunk)
            else:
                method, samples = (
                    "importance sampling with a Gaussian encoder fitted to sleep samples",
                    self.importance_samples,
                )
                estimate = self._importance(model, x)
        self._log(pl_module, "test", estimate)
        median = float(estimate.effective_samples.median())
        pl_module.log("test/log_likelihood_reliable", float(median >= RELIABLE), sync_dist=True)
        if median < RELIABLE:
            pl.utilities.rank_zero_warn(
                f"test/log_likelihood rests on {median:.1f} effective samples per image and is unreliable (too low)."
            )
        self._provenance = {
            "log_likelihood": {
                "method": method,
                "samples_per_image": samples,
                "images": len(x),
                "standard_error": float(estimate.log_likelihood.std() / len(x) ** 0.5) if len(x) > 1 else None,
            }
        }

    def _importance(self, model: Any, x: Tensor) -> LikelihoodEstimate:
        shape, width = tuple(x.shape[1:]), 2 * model.sample_prior(1).shape[1]
        # Lightning tests in inference mode, whose tensors can never be trained: the encoder is made outside it.
        with torch.inference_mode(False), torch.enable_grad():
            # Convolutions halve the image down to 4 × 4.
            halves = shape[-1] >= 16 and shape[-1] == shape[-2] and math.log2(shape[-1]).is_integer()
            encoder: nn.Module = ConvFeatures(shape, width=width) if halves else MLPFeatures(shape, width=width)
            fit_encoder(model, encoder.to(x.device, x.dtype), self.encoder_steps, 200, 1e-3)
        return importance_log_likelihood(model, encoder, x, self.importance_samples, 2_000)

    def _applies(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        return hasattr(trainer.datamodule, "images") and hasattr(pl_module, "evaluation_model")  # type: ignore[attr-defined]

    def _images(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str) -> Tensor:
        # Under a precision such as 64-true the trainer converts its batches, but not these.
        return trainer.datamodule.images(split)[: self.max_images].to(pl_module.dtype)  # type: ignore[attr-defined]

    def _chunk(self, trainer: pl.Trainer) -> int:
        """Prior samples at a time: some two million pixels, and some 8 million pairs with the images."""
        channels, height, width = trainer.datamodule.image_shape  # type: ignore[attr-defined]
        return max(100, min(2**21 // (channels * height * width), 2**23 // self.max_images))

    @staticmethod
    def _log(pl_module: pl.LightningModule, split: str, estimate: LikelihoodEstimate) -> None:
        # Every rank computes the same from the same seeds; sync_dist only tells Lightning so.
        pl_module.log(f"{split}/log_likelihood", estimate.log_likelihood.mean(), sync_dist=True)
        pl_module.log(f"{split}/effective_samples", estimate.effective_samples.median(), sync_dist=True)
