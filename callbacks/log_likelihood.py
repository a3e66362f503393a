"""Log-likelihood of held-out data, by the estimator that can be trusted for the model at hand."""

from __future__ import annotations

from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch import Tensor

from callbacks.image_data import fair_rows, some_images
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.likelihoods import Bernoulli, DiscretisedLogistic
from lightning_alws.metrics.annealed import AnnealedEstimate, Annealing, annealed_log_likelihood, simulated_bounds
from lightning_alws.metrics.bits import bits_per_dimension, dequantise
from lightning_alws.metrics.likelihood import (
    LikelihoodEstimate,
    WeightAccumulator,
    chunks,
    encoder_for,
    fit_encoder,
    importance_log_likelihood,
    monte_carlo_log_likelihood,
)
from lightning_alws.noise import generator, global_seed, seeded

RELIABLE = 10.0  # effective samples per image below which an average over samples is marked unreliable
RELIABLE_GAP = 1.0  # nats between the bounds on simulated images, above which annealing is
PILOT_SAMPLES = 20_000
METHODS = ("auto", "prior", "encoder", "annealed")


class LogLikelihood(Callback):
    """Logs ``val/log_likelihood`` and ``test/log_likelihood``, the mean of log p_θ(x) in nats per image.

    A validation averages p(x|z) over prior samples. The test has three methods, none of which needs what the model was
    trained with, all on the same images:

    * ``prior``: samples of the prior;
    * ``encoder``: importance sampling with a Gaussian encoder that is fitted, for this alone, to sleep samples;
    * ``annealed``: annealed importance sampling with Hamiltonian Monte Carlo, which works where a Gaussian does not fit
      the posterior. It logs ``test/log_likelihood_gap`` too, in nats: what, on average over as many images simulated
      from the model, lies between its lower and an upper bound, and so more than its error there.

    ``auto`` takes prior samples where a pilot of 20 000 shows that at least ten of them count for a typical image, and
    where latents are discrete or on a curve; annealing otherwise. Each is a lower bound in expectation.
    ``test/bits_per_dim`` is logged for pixels that are levels (binary, discretised logistic), and for Gaussian ones, of
    which ``test/log_likelihood`` is a density, where ``dequantise`` is set (:mod:`lightning_alws.metrics.bits`).

    ``test/effective_samples`` is the median over images of (Σw)²/Σw²; ``test/log_likelihood_reliable`` is 1 if it is at
    least ten or, for annealing, if the gap is at most one nat.

    Where the module has an encoder of its own, a method ``log_weights(x, samples, model)`` that gives
    log p_θ(x_b, z_sb) − log q(z_sb|x_b) for z_sb ~ q, shape (samples, B), ``test/log_likelihood_encoder`` is what
    importance sampling with it gives on the same images, and ``test/effective_samples_encoder`` its effective samples.

    Does nothing for models without ``evaluation_model``, those whose ``has_likelihood`` is false, and data without
    ``images``.

    Args:
        method: ``auto``, ``prior``, ``encoder`` or ``annealed``.
        num_samples: prior samples in the test.
        val_samples: prior samples in a validation; 0 for no estimate there.
        max_images: at most so many images are used by whatever method: the first of the split, or of an
            :class:`~datamodules.image_folder.ImageFolder` whose split is a sub-folder, and so in the order of names and
            classes, ones chosen at random, the same in every run (``results.json`` then says so).
        encoder_steps: steps the importance-sampling encoder is fitted for.
        importance_samples: posterior samples per image from a fitted encoder or the module's own.
        annealing: chains, temperatures and leapfrog steps; on a GPU, more of all.
        dequantise: in the test, spread images of Gaussian pixels over their levels by uniform noise.

    Raises:
        UserError: a count makes no sense, the method is unknown, or the images to dequantise have no levels.
    """

    def __init__(
        self,
        method: Literal["auto", "prior", "encoder", "annealed"] = "auto",
        num_samples: int = 200_000,
        val_samples: int = 20_000,
        max_images: int = 100,
        encoder_steps: int = 2_000,
        importance_samples: int = 500,
        annealing: Annealing = Annealing(),  # noqa: B008 (frozen)
        dequantise: bool = False,
    ) -> None:
        if method not in METHODS:
            raise UserError(f"log_likelihood.method is {method!r}; choose one of {', '.join(METHODS)}.")
        check_at_least(
            "log_likelihood",
            num_samples=(num_samples, 1),
            val_samples=(val_samples, 0),
            max_images=(max_images, 1),
            encoder_steps=(encoder_steps, 1),
            importance_samples=(importance_samples, 1),
        )
        self.method = method
        self.num_samples = num_samples
        self.val_samples = val_samples
        self.max_images = max_images
        self.encoder_steps = encoder_steps
        self.importance_samples = importance_samples
        self.annealing = annealing
        self.dequantise = dequantise
        self._provenance: dict[str, Any] = {}

    def switched_off(self, trainer: pl.Trainer) -> dict[str, str]:
        """Figures that no validation will have, and the setting that says so; an experiment's figure may have them."""
        others = any(hasattr(callback, "measure") for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if self.val_samples or others or not hasattr(trainer.datamodule, "images"):  # type: ignore[attr-defined]
            return {}
        return dict.fromkeys(("val/log_likelihood", "val/effective_samples"), "log_likelihood.val_samples")

    def too_large(self) -> str:
        """Where memory ran out, and what takes less; the end of a sentence."""
        return (
            f"in the estimate of the log-likelihood of at most {self.max_images} images; lower "
            "log_likelihood.max_images, or with annealing log_likelihood.annealing.chains, and go on with "
            "--ckpt_path last."
        )

    def provenance(self) -> dict[str, Any]:
        """How the test figures were made."""
        return self._provenance

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a method that the model cannot be measured by, before hours of training."""
        model = getattr(pl_module, "evaluation_model", None)
        if self.method in ("encoder", "annealed") and not getattr(model, "latents_are_real", True):
            raise UserError(
                f"log_likelihood.method is '{self.method}', but some of the model's latents are discrete or on a "
                "curve; use 'prior' or 'auto'."
            )

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
        """The estimates that are reported."""
        if not self._applies(trainer, pl_module):
            return
        model: Any = pl_module.evaluation_model
        x, chunk = self._images(trainer, pl_module, "test"), self._chunk(trainer)
        spacing = self._spacing(trainer.datamodule, model)  # type: ignore[attr-defined]
        if spacing:
            x = dequantise(x, spacing, generator(global_seed(), "dequantise"))
        with seeded(pl_module.device, global_seed(), "log_likelihood", "test"):
            method = self.method if self.method != "auto" else self._trusted(model, x, chunk)
            gap = None
            if method == "prior":
                name, counts = "prior samples", {"samples_per_image": self.num_samples}
                estimate = monte_carlo_log_likelihood(model, x, self.num_samples, chunk)
            elif method == "encoder":
                name = "importance sampling with a Gaussian encoder fitted to sleep samples"
                counts = {"samples_per_image": self.importance_samples, "encoder_steps": self.encoder_steps}
                estimate = self._importance(model, x)
            else:
                name = "annealed importance sampling"
                estimate, gap, counts = self._annealed(model, x)
        self._log(pl_module, "test", estimate)
        self._judge(pl_module, estimate, gap)
        self._provenance = {"log_likelihood": {"method": name, **counts, **_spread(estimate)}}
        if spacing is not None:
            bits = bits_per_dimension(estimate.log_likelihood, x[0].numel(), spacing or None)
            pl_module.log("test/bits_per_dim", bits.mean(), sync_dist=True)
            self._provenance["bits_per_dim"] = {"dequantised": "uniform" if spacing else "no, levels"}
        if spacing:
            self._provenance["log_likelihood"]["dequantised"] = "uniform"
        if hasattr(pl_module, "log_weights"):
            self._own_encoder(pl_module, model, x)
        if "test" in getattr(trainer.datamodule, "in_file_order", ()):  # type: ignore[attr-defined]
            for part in self._provenance.keys() & {"log_likelihood", "log_likelihood_encoder"}:
                self._provenance[part]["images_chosen"] = "at random"

    def _spacing(self, data: Any, model: Any) -> float | None:
        """The distance of the levels that images are spread over; 0 for a law of levels, None where neither holds."""
        with torch.no_grad(), seeded(next(model.parameters()).device, 0):
            law = model.likelihood(model.sample_prior(1))
        if isinstance(law, Bernoulli | DiscretisedLogistic):
            return 0.0
        if not self.dequantise:
            return None
        white = getattr(data, "white", None)
        if getattr(data, "likelihood", None) != "gaussian" or not white:
            raise UserError(
                f"log_likelihood.dequantise is true, but the images of {type(data).__name__} have no levels in [-1, 1] "
                "to be spread over; leave it out."
            )
        return 2 / white

    def _trusted(self, model: Any, x: Tensor, chunk: int) -> str:
        if not model.latents_are_real:
            return "prior"
        pilot = monte_carlo_log_likelihood(model, x, min(PILOT_SAMPLES, self.num_samples), chunk)
        # Where few samples carry the estimate, ten times as many rarely make them ten times as many.
        return "prior" if pilot.effective_samples.median() >= RELIABLE else "annealed"

    def _importance(self, model: Any, x: Tensor) -> LikelihoodEstimate:
        # Lightning tests in inference mode, whose tensors can never be trained: the encoder is made outside it.
        with torch.inference_mode(False), torch.enable_grad():
            encoder = encoder_for(tuple(x.shape[1:]), model.sample_prior(1).shape[1]).to(x.device, x.dtype)
            fit_encoder(model, encoder, self.encoder_steps, 200, 1e-3)
        return importance_log_likelihood(model, encoder, x, self.importance_samples, 2_000)

    def _annealed(self, model: Any, x: Tensor) -> tuple[AnnealedEstimate, Tensor, dict[str, Any]]:
        # Rows at a time: on a CPU, what a decoder's layers make of them should stay in the cache.
        rows = max(100, (2**22 if x.device.type == "cuda" else 2**18) // x[0].numel())
        estimate = annealed_log_likelihood(model, x, self.annealing, rows)
        gap = simulated_bounds(model, len(x), self.annealing, rows).gap
        settings = self.annealing
        counts = {
            "chains": settings.chains,
            "temperatures": settings.temperatures,
            "leapfrog_steps": settings.leapfrog_steps,
            "acceptance": float(estimate.acceptance.mean()),
            "gap_standard_error": float(gap.std() / len(gap) ** 0.5) if len(gap) > 1 else None,
        }
        return estimate, gap, counts

    def _own_encoder(self, pl_module: Any, model: Any, x: Tensor) -> None:
        weights = WeightAccumulator(len(x), x.device)
        with seeded(pl_module.device, global_seed(), "log_likelihood", "encoder"):
            for size in chunks(self.importance_samples, max(1, 2_000 // len(x))):
                weights.add(pl_module.log_weights(x, size, model).T)
        estimate = weights.estimate()
        pl_module.log("test/log_likelihood_encoder", estimate.log_likelihood.mean(), sync_dist=True)
        pl_module.log("test/effective_samples_encoder", estimate.effective_samples.median(), sync_dist=True)
        self._provenance["log_likelihood_encoder"] = {
            "method": "importance sampling with the method's own encoder",
            "samples_per_image": self.importance_samples,
            **_spread(estimate),
        }

    @staticmethod
    def _judge(pl_module: pl.LightningModule, estimate: LikelihoodEstimate, gap: Tensor | None) -> None:
        """Log whether the figure can be relied on, and say so where it cannot."""
        if gap is None:
            figure = float(estimate.effective_samples.median())
            reliable, reason = figure >= RELIABLE, f"rests on {figure:.1f} effective samples per image"
        else:
            figure = float(gap.mean())
            pl_module.log("test/log_likelihood_gap", figure, sync_dist=True)
            reliable, reason = figure <= RELIABLE_GAP, f"has bounds {figure:.1f} nats apart on simulated images"
        pl_module.log("test/log_likelihood_reliable", float(reliable), sync_dist=True)
        if not reliable:
            pl.utilities.rank_zero_warn(f"test/log_likelihood {reason} and is unreliable (too low).")

    def _applies(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        if trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return False
        makes_images = hasattr(trainer.datamodule, "images") and hasattr(pl_module, "evaluation_model")  # type: ignore[attr-defined]
        return makes_images and getattr(pl_module, "has_likelihood", True)

    def _images(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str) -> Tensor:
        data = trainer.datamodule  # type: ignore[attr-defined]
        # The same in every run, whatever its seed, so that figures can be compared.
        rows = fair_rows(data, split, self.max_images, "log_likelihood", split)
        # Under a precision such as 64-true the trainer converts its batches, but not these.
        return some_images(data, split, rows).to(pl_module.dtype)

    def _chunk(self, trainer: pl.Trainer) -> int:
        """Prior samples at a time: some two million pixels, and some 8 million pairs with the images."""
        channels, height, width = trainer.datamodule.image_shape  # type: ignore[attr-defined]
        return max(100, min(2**21 // (channels * height * width), 2**23 // self.max_images))

    @staticmethod
    def _log(pl_module: pl.LightningModule, split: str, estimate: LikelihoodEstimate) -> None:
        # Every rank computes the same from the same seeds; sync_dist only tells Lightning so.
        pl_module.log(f"{split}/log_likelihood", estimate.log_likelihood.mean(), sync_dist=True)
        pl_module.log(f"{split}/effective_samples", estimate.effective_samples.median(), sync_dist=True)


def _spread(estimate: LikelihoodEstimate) -> dict[str, Any]:
    """The number of images, and the standard error of their mean as a sample of all images."""
    values = estimate.log_likelihood
    count = len(values)
    return {"images": count, "standard_error": float(values.std() / count**0.5) if count > 1 else None}
