"""The Langevin autoencoder: posterior samples by Langevin dynamics on the encoder's last layer, for a batch at once.

Amortised Langevin dynamics: with z_i = Φ h_ψ(x_i), the last layer Φ moves in the potential of the whole minibatch,

    V(Φ) = −Σ_i log p_θ(x_i, Φ h_ψ(x_i)),   Φ' ~ N(Φ − η ∇V(Φ), 2η I),   accepted or refused once for all images,

which moves the latents by Langevin dynamics preconditioned with h_iᵀh_j. Their stationary law is the posterior,
Π_i p_θ(z_i|x_i), where the h_i are linearly independent: features must be at least as wide as the minibatch. Decoder
θ and features ψ then take one step on the mean of V/n over the T states visited. Source: Taniguchi, Iwasawa, Kumagai,
Matsuo, "Langevin autoencoders for learning deep latent variable models", NeurIPS 2022
(https://arxiv.org/abs/2209.07036). Where we differ from the published code (iShohei220/LAE):

* Its step η' = 1e-4 multiplies the gradient of V/B and its noise has variance 2η'/B: the same moves as ours with
  η = η'/B = 1e-6. The test there mixes the two scales; here every term is of V and η.
* The visited states are those after each of the T moves. Before the first, Φ has not seen these images. (There, V is
  taken before each move, but one move precedes them all: T + 1 moves, the same T states.)
* Features are normalised before their ReLU, as published, whatever the encoder: η then means the same for each.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_alws.baselines.image import EncoderBuilder, ImageEncoderMethod
from lightning_alws.baselines.lower_bound import log_joint
from lightning_alws.baselines.vae import GaussianPosterior, elbo, log_weights
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.generative import LatentVariableModel
from lightning_alws.langevin import Langevin, Trajectory
from lightning_alws.networks import ConvFeatures


class LangevinAutoencoder(ImageEncoderMethod):
    """A deep generative model of images learnt by amortised Langevin dynamics.

    Φ is no parameter of the optimiser, but moves on from step to step and is kept in checkpoints. Under DDP all
    processes hold the same Φ: energies and gradients are summed over them, and each draws the same noise. For
    evaluation, q(z|x) = N(Φ h(x), s²) with a fixed s; its bound is far below log p(x) where posteriors are wide.

    Args:
        encoder: builds the network from images to a vector of features, as wide as a minibatch or wider.
        moves: T, for each minibatch.
        step_size: η, against the sum over the minibatch.
        metropolis: whether moves are tested, so that the posterior is the stationary law exactly.
        posterior_scale: s.
        settings: those of :class:`~lightning_alws.baselines.image.ImageMethod`.

    Raises:
        UserError: a setting makes no sense.
    """

    weight: Tensor

    def __init__(
        self,
        encoder: EncoderBuilder = ConvFeatures,
        moves: int = 2,
        step_size: float = 1e-6,
        metropolis: bool = True,
        posterior_scale: float = 0.05,
        **settings: Any,
    ) -> None:
        check_at_least("model", moves=(moves, 1))
        if not posterior_scale > 0:
            raise UserError(f"model.posterior_scale is {posterior_scale}; give a positive number, such as 0.05.")
        super().__init__(encoder, **settings)
        self.moves, self.posterior_scale = moves, posterior_scale
        self.langevin = Langevin(step_size, metropolis)
        self.encoder.insert(1, nn.LayerNorm(self.feature_width))
        self.register_buffer("weight", nn.init.orthogonal_(torch.empty(self.latent_dim, self.feature_width)))

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """T moves of Φ; the mean of V/n over the states visited."""
        features = self.features(x)
        with self.noise("langevin", shared=True):
            visited = self.move(self.weight[None], features.detach(), x, self.sum_over_processes)
        self.weight.copy_(visited.positions[-1, 0])
        energy = self.energies(visited.positions[:, 0], features, x).mean()
        self.log("train/energy", energy.detach(), prog_bar=True)
        self.log("train/acceptance", visited.accepted.mean())
        return energy

    def energies(self, weights: Tensor, features: Tensor, x: Tensor) -> Tensor:
        """−log p_θ(x_b, Φ_c h_b), shape (C, B).

        Args:
            weights: C matrices Φ_c, (C, latent_dim, width).
            features: h_b, (B, width).
            x: images (B, C, H, W).
        """
        return -log_joint(self.generative, features @ weights.mT, x)

    def move(self, weights: Tensor, features: Tensor, x: Tensor, total: Any = lambda part: part) -> Trajectory:
        """T moves of C chains from matrices (C, latent_dim, width), for features without gradient.

        Args:
            total: sums over the processes that hold parts of the minibatch.
        """
        return self.langevin.run(lambda w: self.energies(w, features, x).sum(1), weights, self.moves, total)

    def sum_over_processes(self, part: Tensor) -> Tensor:
        """The sum of each process's tensor."""
        if self._trainer is None or self.trainer.world_size == 1:
            return part
        return self.trainer.strategy.reduce(part, reduce_op="sum")  # type: ignore[return-value]

    def posterior(self, x: Tensor) -> GaussianPosterior:
        """q(z|x) of the evaluation, for images x (B, C, H, W)."""
        location = self.features(x) @ self.weight.T
        return GaussianPosterior(location, location.new_full((), math.log(self.posterior_scale)).expand_as(location))

    def bound(self, x: Tensor, model: LatentVariableModel) -> Tensor:
        """One-draw estimate of the ELBO of q for images x (B, C, H, W), shape (B,), in nats."""
        return elbo(self.posterior(x), model, x)

    def log_weights(self, x: Tensor, samples: int, model: LatentVariableModel) -> Tensor:
        """log p_θ(z_sb, x_b) − log q(z_sb|x_b), z_sb ~ q, for images x (B, C, H, W), shape (samples, B)."""
        return log_weights(self.posterior(x), samples, model, x)
