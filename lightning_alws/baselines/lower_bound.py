"""What methods share that maximise a lower bound of log p_θ(x) by means of an encoder q(z|x)."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor

from lightning_alws.generative import LatentVariableModel
from lightning_alws.module import LatentVariableModule


def log_joint(model: LatentVariableModel, z: Tensor, x: Tensor) -> Tensor:
    """log p_θ(z_sb, x_b) for S latents (S, B, latent_dim) of each observation (B, *event), shape (S, B)."""
    flat = z.flatten(0, 1)
    log_prob = model.likelihood(flat).log_prob(x.repeat(len(z), *[1] * (x.ndim - 1)))
    return (model.log_prior(flat) + log_prob).view(z.shape[:2])


def log_mean_weight(log_weights: Tensor) -> Tensor:
    """log (1/S) Σ_s w_sb of log weights (S, B), shape (B,)."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


class LowerBoundMethod(LatentVariableModule):
    """Trains p_θ and q by raising a lower bound; a method defines the bound.

    A subclass that can draw from q also defines ``log_weights``, for the importance-sampled log-likelihood.

    Attributes:
        bound_name: under which the bound is logged, as ``train/NAME``, ``val/NAME`` and ``test/NAME``.
    """

    bound_name: str = "elbo"

    @abstractmethod
    def bound(self, x: Tensor, model: LatentVariableModel) -> Tensor:
        """An estimate of the bound for observations x (B, *event), shape (B,), in nats, differentiable.

        Args:
            model: the generative model: in training the one in training, otherwise the evaluated one.
        """

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """−mean bound of a batch."""
        with self.noise("posterior"):
            bound = self.bound(x, cast(LatentVariableModel, self.generative)).mean()
        self.log(f"train/{self.bound_name}", bound.detach(), prog_bar=True)
        return -bound

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        """Log the bound of the evaluated model on held-out observations."""
        self._log_bound("val", "validation", x, batch_idx)

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        """Log the bound of the evaluated model on test observations."""
        self._log_bound("test", "test", x, batch_idx)

    def _log_bound(self, split: str, stream: str, x: Tensor, batch_idx: int) -> None:
        with self.noise(stream, batch_idx), torch.no_grad():
            bound = self.bound(x, cast(LatentVariableModel, self.evaluation_model)).mean()
        self.log(f"{split}/{self.bound_name}", bound, sync_dist=True, batch_size=len(x))
        if split == "test" and self.bound_name == "elbo":
            # In the units of the Langevin autoencoder's table; of discretised pixels only is it a code length.
            self.log("test/negative_elbo_per_dim", -bound / x[0].numel(), sync_dist=True, batch_size=len(x))
