"""Neural process: a function's outputs y given its inputs and a context of known points, learnt by amortised learning.

    r = mean over context of e(x_c, y_c),   z | context ~ N(μ(r), σ(r)²),   y_t | z, x_t ~ N(m(x_t, z), s(x_t, z)²)

The context's law of z is a prior with parameters, and z a latent like any other: it is sampled, not reparameterised,
and no second encoder of the targets is needed. Source: Garnelo et al., "Neural Processes", 2018; the sizes are those
of kevin-w-li/al-ws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import LOG_2_PI, DiagonalGaussian, Likelihood
from lightning_alws.networks import mlp

LEAST_SCALE = 0.1  # of z and of y, as published


class NeuralProcess(LatentVariableModel):
    """p_θ(z | context) p_θ(y | z, x) of one function at a time, the one given last to :meth:`condition`.

    Functions come as points (..., T, 3): input, output, and 1 where the point is context or else 0. All T outputs are
    observed, those of the context included, as published.

    Args:
        event_shape: (T,), from the data module; only for the context at construction, four flat points.
        latent_dim: dimension of z.
        width: of all hidden layers.

    Raises:
        UserError: a number makes no sense.
    """

    prior_is_learnt = True

    def __init__(self, event_shape: tuple[int, ...] | None, latent_dim: int = 50, width: int = 50) -> None:
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("width", width)):
            if value < 1:
                raise UserError(f"model.{name} is {value}; give at least 1.")
        self.encoder = mlp([2, width, width, width])
        self.to_mean = nn.Sequential(mlp([width, width, width]), nn.ReLU(), nn.Linear(width, latent_dim))
        self.to_scale = nn.Linear(width, latent_dim)
        # One layer on [x, z] in two parts: of N latents and T inputs each part has fewer rows than the N·T pairs.
        self.from_latent = nn.Linear(latent_dim, width)
        self.from_input = nn.Linear(1, width, bias=False)
        self.decoder = nn.Sequential(nn.ReLU(), mlp([width, width, width, 2]))
        self.points = flat_function(event_shape)

    def condition(self, points: Tensor) -> None:
        """Model the outputs of the function with these points (T, 3), given its context, from now on."""
        self.points = points

    def encode(self, points: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of z, each (B, latent_dim), given those of the points (B, T, 3) where ``chosen`` is 1, not 0.

        Without any, r is 0.
        """
        codes = self.encoder(points[..., :2]) * chosen[..., None]
        summary = codes.sum(-2) / chosen.sum(-1, keepdim=True).clamp_min(1)
        return self.to_mean(summary), LEAST_SCALE + (1 - LEAST_SCALE) * self.to_scale(summary).sigmoid()

    def decode(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of outputs, each (..., N, T), for latents (..., N, latent_dim) at inputs (..., T)."""
        hidden = self.from_latent(z)[..., :, None, :] + self.from_input(x[..., None])[..., None, :, :]
        # Back to the dtype of z where autocast lowered it: a scale of 0.1 makes the likelihood sensitive.
        mean, scale = self.decoder(hidden).to(z.dtype).unbind(-1)
        return mean, LEAST_SCALE + (1 - LEAST_SCALE) * softplus(scale)

    def prior(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of z given the context, each (1, latent_dim)."""
        points = self.points.to(self.to_scale.weight)[None]
        mean, scale = self.encode(points, points[..., 2])
        return mean.to(points.dtype), scale.to(points.dtype)

    @torch.no_grad()
    def sample_prior(self, count: int) -> Tensor:
        mean, scale = self.prior()
        return mean + scale * torch.randn(count, mean.shape[1], device=mean.device, dtype=mean.dtype)

    def log_prior(self, z: Tensor) -> Tensor:
        mean, scale = self.prior()
        return (-0.5 * (((z - mean) / scale).square() + LOG_2_PI) - scale.log()).sum(-1)

    def likelihood(self, z: Tensor) -> Likelihood:
        mean, scale = self.decode(z, self.points[:, 0].to(z))
        return DiagonalGaussian(mean, scale.log())

    @torch.no_grad()
    def log_predictive(self, points: Tensor, count: int) -> Tensor:
        """log p(y_held-out | context) of points (B, T, 3), jointly over all that is not context, in float64, (B,).

        Each is the mean density over ``count`` draws of z given the context, hence too low in expectation by half of
        its relative variance.
        """
        mean, scale = self.encode(points, points[..., 2])
        noise = torch.randn(len(points), count, mean.shape[-1], device=mean.device, dtype=mean.dtype)
        centre, spread = self.decode(mean[:, None] + scale[:, None] * noise, points[..., 0])
        squared = ((points[:, None, :, 1] - centre) / spread).square()
        log_densities = (-0.5 * (squared + LOG_2_PI) - spread.log()) * (1 - points[:, None, :, 2])
        return log_densities.sum(-1).double().logsumexp(-1) - math.log(count)


def flat_function(event_shape: tuple[int, ...] | None) -> Tensor:
    """T points (T, 3) of y = 0 between −π and π, every other one context: a plausible function before any is seen."""
    total = event_shape[0] if event_shape else 8
    x = torch.linspace(-math.pi, math.pi, total)
    return torch.stack([x, torch.zeros(total), 1.0 - torch.arange(total) % 2], dim=-1)


def check_points(batch: Tensor) -> None:
    """Raise a UserError unless a batch is points (B, T, 3)."""
    if batch.ndim != 3 or batch.shape[-1] != 3:
        raise UserError(
            f"a neural process takes points (functions, T, 3) of input, output and whether it is context, but the data "
            f"have batches of shape {tuple(batch.shape)}; use SineFunctions, or data laid out like it."
        )


class NeuralProcessModel(AmortisedLearning):
    """A neural process trained by amortised learning, one function a step.

    Each function has a context, hence sleep samples and a regression of its own: y* is one vector (1, T). To average
    the gradient over several functions set ``trainer.accumulate_grad_batches``.

    Args:
        latent_dim: dimension of z.
        width: of all hidden layers.
        learning: how it is trained.
        event_shape: (T,); comes from the data module.
    """

    pools = False

    def __init__(
        self,
        latent_dim: int = 50,
        width: int = 50,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(NeuralProcess(event_shape, latent_dim, width), learning)
        self.save_hyperparameters()

    def observe(self, batch: Tensor) -> Tensor:
        """Hand the context and the inputs of the one function (1, T, 3) to the model; its outputs (1, T)."""
        check_points(batch)
        if len(batch) != 1:
            raise UserError(
                f"a batch holds {len(batch)} functions, but amortised learning takes one at a time; set "
                "data.batch_size and data.eval_batch_size to 1, and trainer.accumulate_grad_batches above 1."
            )
        for model in (self.generative, self.evaluation_model):
            model.condition(batch[0])  # type: ignore[operator]
        return batch[..., 1]

    def on_validation_epoch_start(self) -> None:
        """Nothing: there are no sleep samples that all functions share."""

    def on_validation_epoch_end(self) -> None:
        """Nothing is left to discard."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log Ĵ of one function, from sleep samples given its context."""
        y = self.observe(batch)
        with torch.no_grad():
            sleep = self.draw(self.learning.sleep_samples, "validation", batch_idx)
            fitted = self.regression.fit(sleep.x)
            # Decided for all ranks at once: logging is collective.
            if not self.any_rank(fitted.failure is not None):
                self.log("val/objective", self.wake(fitted, sleep, y).mean(), sync_dist=True, batch_size=1)
