"""The Langevin autoencoder: posterior samples by Langevin dynamics on the encoder's last layer, for a batch at once.

Amortised Langevin dynamics: with z_i = Φ h_ψ(x_i), the last layer Φ moves in the potential of the whole minibatch,

    V(Φ) = −Σ_i log p_θ(x_i, Φ h_ψ(x_i)),   Φ' ~ N(Φ − η ∇V(Φ), 2η I),   accepted or refused once for all images,

which moves the latents by Langevin dynamics preconditioned with K_ij = h_iᵀh_j. Their stationary law is the posterior,
Π_i p_θ(z_i|x_i), where the h_i are linearly independent: features must be at least as wide as the minibatch. Decoder
θ and features ψ then take one step on the mean of V/n over the T states visited. Source: Taniguchi, Iwasawa, Kumagai,
Matsuo, "Langevin autoencoders for learning deep latent variable models", NeurIPS 2022
(https://arxiv.org/abs/2209.07036). Where we differ from the published code (iShohei220/LAE):

* Its step η' = 1e-4 multiplies the gradient of V/B and its noise has variance 2η'/B: the same moves as ours with
  η = η'/B = 1e-6. The test there mixes the two scales; here every term is of V and η.
* The visited states are those after each of the T moves. Before the first, Φ has not seen these images. (There, V is
  taken before each move, but one move precedes them all: T + 1 moves, the same T states.)
* Features are normalised before their ReLU, as published, whatever the encoder: η then means the same for each.

Four additions of ours, each off by default, for where the published moves hardly move. The features share one mean
direction, in which K is thousands of times what it is in most others (10 000 beside a median of 10 on Digits): the
step it allows moves all latents jointly, and each by itself next to nothing. Adam then finds features that are nearly
alike for all images, which makes it worse (a median of 0.1 after 50 steps), and what learns is an autoencoder without
noise.

* ``damping``: moves u in coordinates Φ + u (K + λI)⁻¹ H, in which the latents move by K (K + λI)⁻¹ u: those of K ≫ λ
  by Langevin dynamics of their own, of the same stationary law for any λ > 0.
* ``acceptance``: η follows the moves accepted, from one minibatch to the next (constant within each).
* ``encoder_learning_rate``: a smaller one for ψ keeps the features apart. (The published gradient descent of 1e-4
  leaves them much as they were drawn.)
* ``posterior_scale: null``: q(z|x) of the evaluation has the chain's own mean and spread.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_alws.baselines.image import EncoderBuilder, ImageEncoderMethod
from lightning_alws.baselines.lower_bound import log_joint
from lightning_alws.baselines.vae import GaussianPosterior, elbo, log_weights
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.generative import LatentVariableModel
from lightning_alws.langevin import Langevin, Trajectory
from lightning_alws.networks import ConvFeatures

GAIN = 0.05  # change of log η for an acceptance off by one: an average over some twenty minibatches
MEMORY = 0.9  # weight of the minibatches before in the mean and spread of q; with more, features have moved away


class LangevinAutoencoder(ImageEncoderMethod):
    """A deep generative model of images learnt by amortised Langevin dynamics.

    Φ is no parameter of the optimiser, but moves on from step to step and is kept in checkpoints, as η is where it is
    adapted. Under DDP all processes hold the same Φ: energies and gradients are summed over them, and each draws the
    same noise.

    Args:
        encoder: builds the network from images to a vector of features, as wide as a minibatch or wider.
        moves: T, for each minibatch.
        step_size: η, against the sum over the minibatch; in the units of Φ, or with ``damping`` of z.
        metropolis: whether moves are tested, so that the posterior is the stationary law exactly.
        acceptance: share of moves that η is adapted to, in training (0.57 is optimal in many dimensions: Roberts and
            Rosenthal, Journal of the Royal Statistical Society B 60, 1998); None for a fixed η.
        damping: λ, in units of the mean squared length of the features; None for moves of Φ itself, as published.
        encoder_learning_rate: of the features; None for ``learning_rate``.
        posterior_scale: s of the evaluation's q(z|x) = N(Φ h(x), s²), whose bound is far below log p(x) where
            posteriors are wide; None for the mean Φ of the last minibatches and the spread of latents about it.
        settings: those of :class:`~lightning_alws.baselines.image.ImageMethod`.

    Raises:
        UserError: a setting makes no sense.
    """

    weight: Tensor
    mean_weight: Tensor
    spread: Tensor
    log_step: Tensor

    def __init__(
        self,
        encoder: EncoderBuilder = ConvFeatures,
        moves: int = 2,
        step_size: float = 1e-6,
        metropolis: bool = True,
        acceptance: float | None = None,
        damping: float | None = None,
        encoder_learning_rate: float | None = None,
        posterior_scale: float | None = 0.05,
        **settings: Any,
    ) -> None:
        check_at_least("model", moves=(moves, 1))
        if posterior_scale is not None and not posterior_scale > 0:
            raise UserError(f"model.posterior_scale is {posterior_scale}; give a number above 0, or null.")
        if damping is not None and not 0 < damping < math.inf:
            raise UserError(f"model.damping is {damping}; give a positive number, such as 0.04, or null for none.")
        if encoder_learning_rate is not None and not encoder_learning_rate > 0:
            raise UserError(f"model.encoder_learning_rate is {encoder_learning_rate}; give a positive number, or null.")
        if acceptance is not None and not (metropolis and 0 < acceptance < 1):
            raise UserError(
                f"model.acceptance is {acceptance} and model.metropolis {metropolis}; give a share of tested moves, "
                "such as 0.57, or null for a fixed step."
            )
        Langevin(step_size, metropolis)  # refuses a step that makes no sense
        super().__init__(encoder, **settings)
        self.moves, self.step_size, self.metropolis, self.acceptance = moves, step_size, metropolis, acceptance
        self.damping, self.posterior_scale, self.encoder_learning_rate = damping, posterior_scale, encoder_learning_rate
        self.encoder.insert(1, nn.LayerNorm(self.feature_width))
        self.register_buffer("weight", nn.init.orthogonal_(torch.empty(self.latent_dim, self.feature_width)))
        self.register_buffer("mean_weight", self.weight.clone())
        self.register_buffer("spread", torch.ones(self.latent_dim))
        self.register_buffer("log_step", torch.tensor(math.log(step_size)))
        self._warned = False

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As of all methods; the features with a learning rate of their own, if they have one."""
        optimizer = super().configure_optimizers()
        for group in optimizer.param_groups:
            if group["name"] == "encoder" and self.encoder_learning_rate is not None:
                group["lr"] = self.encoder_learning_rate
        return optimizer

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """T moves of Φ; the mean of V/n over the states visited."""
        self._check_width(len(x))
        features = self.features(x)
        with self.noise("langevin", shared=True):
            visited = self.move(self.weight[None], features.detach(), x)
        weights, accepted = visited.positions[:, 0], visited.accepted.mean()
        self._remember(weights, features.detach())
        if self.acceptance is not None:
            self.log_step += GAIN * (accepted - self.acceptance)
            self.log("train/step_size", self.log_step.exp())
        energy = self.energies(weights, features, x).mean()
        self.log("train/energy", energy.detach(), prog_bar=True)
        self.log("train/acceptance", accepted)
        return energy

    def energies(self, weights: Tensor, features: Tensor, x: Tensor) -> Tensor:
        """−log p_θ(x_b, Φ_c h_b), shape (C, B).

        Args:
            weights: C matrices Φ_c, (C, latent_dim, width).
            features: h_b, (B, width).
            x: images (B, C, H, W).
        """
        return -log_joint(self.generative, features @ weights.mT, x)

    def move(self, weights: Tensor, features: Tensor, x: Tensor) -> Trajectory:
        """T moves of C chains from matrices (C, latent_dim, width), for features without gradient.

        Processes that hold parts of a minibatch move alike.
        """
        adapted = self.acceptance is not None
        langevin = Langevin(self.log_step.exp().to(weights.dtype) if adapted else self.step_size, self.metropolis)

        def energy(at: Tensor) -> Tensor:
            return self.energies(at, features, x).sum(1)

        if self.damping is None:
            return langevin.run(energy, weights, self.moves, self._sum_over_processes)
        basis = self.basis(self._of_all_processes(features).to(weights.dtype))
        start = weights.new_zeros(*weights.shape[:2], len(basis))
        moved = langevin.run(lambda u: energy(weights + u @ basis), start, self.moves, self._sum_over_processes)
        return Trajectory(weights + moved.positions @ basis, moved.accepted)

    def basis(self, features: Tensor) -> Tensor:
        """(K + λI)⁻¹ H of a whole minibatch's features H (B, width), of the same shape."""
        with torch.autocast(features.device.type, enabled=False):
            gram = features @ features.T
            squared = gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)
            damped = gram + (self.damping or 0.0) * squared * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            # Without a check, which would wait for the device: a NaN reaches the proposals, which are then refused.
            return torch.cholesky_solve(features, torch.linalg.cholesky_ex(damped).L)

    def _remember(self, weights: Tensor, features: Tensor) -> None:
        """Take over the last of T matrices (T, latent_dim, width); follow their mean, and the latents' spread."""
        # A batch with a NaN teaches nothing, here as in the optimiser's step.
        real = weights.isfinite().all() & self._sum_over_processes(features.sum()).isfinite()
        memory = min(MEMORY, (1 + self.global_step) / (10 + self.global_step))
        mean = self.mean_weight.lerp(weights.mean(0), 1 - memory)
        square = self._sum_over_processes((features @ (weights - mean).mT).square().mean((0, 1))) / self._processes
        spread = (memory * self.spread.square() + (1 - memory) * square).sqrt()
        for buffer, value in ((self.weight, weights[-1]), (self.mean_weight, mean), (self.spread, spread)):
            buffer.copy_(torch.where(real, value, buffer))

    @property
    def _processes(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    def _sum_over_processes(self, part: Tensor) -> Tensor:
        if self._processes == 1:
            return part
        return self.trainer.strategy.reduce(part, reduce_op="sum")  # type: ignore[return-value]

    def _of_all_processes(self, rows: Tensor) -> Tensor:
        if self._processes == 1:
            return rows
        return self.all_gather(rows).flatten(0, 1)  # type: ignore[union-attr]

    def _check_width(self, images: int) -> None:
        """Warn, once, of minibatches whose posteriors no matrix can sample."""
        if images * self._processes > self.feature_width and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"the minibatch has {images * self._processes} images and the encoder {self.feature_width} features: "
                "the Langevin autoencoder then cannot sample every image's posterior; give the encoder a width of at "
                "least the minibatch's, or lower data.batch_size."
            )

    def posterior(self, x: Tensor) -> GaussianPosterior:
        """q(z|x) of the evaluation, for images x (B, C, H, W)."""
        chain = self.posterior_scale is None
        location = self.features(x) @ (self.mean_weight if chain else self.weight).T
        scale = self.spread if chain else location.new_full((), self.posterior_scale or 0.0)
        return GaussianPosterior(location, scale.log().expand_as(location))

    def bound(self, x: Tensor, model: LatentVariableModel) -> Tensor:
        """One-draw estimate of the ELBO of q for images x (B, C, H, W), shape (B,), in nats."""
        return elbo(self.posterior(x), model, x)

    def log_weights(self, x: Tensor, samples: int, model: LatentVariableModel) -> Tensor:
        """log p_θ(z_sb, x_b) − log q(z_sb|x_b), z_sb ~ q, for images x (B, C, H, W), shape (samples, B)."""
        return log_weights(self.posterior(x), samples, model, x)
