"""The Wasserstein generative adversarial network with gradient penalty, around the generator of the other methods.

    critic       min_ψ  E D_ψ(g) − E D_ψ(x) + λ E (‖∇_y D_ψ(y)‖₂ − 1)²,   y = x + u (g − x), u ~ U(0, 1) for each image
    generator    min_θ  −E D_ψ(g),   g = E[x|z] = decoder(z), z ~ p(z)

several critic steps for each generator step. Source: Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved
training of Wasserstein GANs", NeurIPS 2017, Algorithm 1 (https://arxiv.org/abs/1704.00028).

**Steps.** The one method here with two optimisers, and manual optimisation. Lightning counts every step of an optimiser
it knows, so that ``max_steps`` would be reached six times too soon and TensorBoard have two time axes. Here a batch is
cut into one part for each critic step, and ends in one generator step, the only one that is counted: a batch, a
training step, a generator step and a step of ``global_step`` are the same thing, wherever they are counted
(``max_steps``, ``val_check_interval``, checkpoints, ``results.json``, curves, averaged weights). The critic's optimiser
is stepped by the strategy as any other, and its state is in the checkpoint.

**Likelihood.** The critic sees means E[x|z] alone. Binary pixels have no further parameter, and p_θ(x|z) remains that
of the other methods. The noise scale of grey pixels is learnt from nothing: it is held at half a grey level (and
``noise_floor``, here 0 by default), so that samples look like means. log p_θ(x) of grey images then means nothing and
is not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lightning_alws.baselines.image import ImageMethod
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.guard import parameter_sum
from lightning_alws.models.image import GaussianPixels
from lightning_alws.networks import ConvCritic

CriticBuilder = Callable[[tuple[int, ...]], nn.Module]
HALF_A_GREY_LEVEL = 1 / 255  # of pixels in [−1, 1]


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, position: Tensor) -> Tensor:
    """Mean (‖∇_y D(y)‖₂ − 1)² at y = real + position · (fake − real), a scalar, differentiable in the critic.

    Args:
        critic: (B, C, H, W) → (B,), each image by itself.
        real: images (B, C, H, W), without gradient.
        fake: as many generated ones, without gradient.
        position: in [0, 1], shape (B,).
    """
    y = torch.lerp(real, fake, position.view(-1, *[1] * (real.ndim - 1))).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(y).sum(), y, create_graph=True)
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1).square().mean()


class WGANGP(ImageMethod):
    """A generator of images that a critic cannot tell from real ones, learnt by WGAN-GP.

    Args:
        critic: builds the network from images (B, C, H, W) to numbers (B,); without BatchNorm.
        penalty: λ.
        critic_steps: critic steps for each generator step, each with its part of the batch.
        learning_rate: Adam's, for generator and critic.
        betas: Adam's.
        noise_floor: least noise scale of the samples of grey images; the critic sees none of it.
        settings: those of :class:`~lightning_alws.baselines.image.ImageMethod`.

    Raises:
        UserError: a setting makes no sense, or the prior has parameters, which a critic of images cannot teach.
    """

    def __init__(
        self,
        critic: CriticBuilder = ConvCritic,
        penalty: float = 10.0,
        critic_steps: int = 5,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.5, 0.9),
        noise_floor: float = 0.0,
        **settings: Any,
    ) -> None:
        check_at_least("model", critic_steps=(critic_steps, 1), penalty=(penalty, 0))
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"model.betas is {tuple(betas)}; give two numbers from 0 to below 1, such as 0.5 and 0.9.")
        super().__init__(learning_rate=learning_rate, noise_floor=noise_floor, **settings)
        if self.generative.prior_is_learnt:
            raise UserError(
                f"model.prior is {type(self.generative.prior).__name__}, whose parameters get no gradient through "
                "samples; WGANGP takes priors without any, such as StandardNormal."
            )
        if self.optimizer is not Adam:
            raise UserError(f"model.optimizer is {settings['optimizer']}; WGANGP takes adam only, whose betas it sets.")
        self.automatic_optimization = False
        for model in {self.generative, self.evaluation_model}:
            if isinstance(model.pixels, GaussianPixels):  # type: ignore[union-attr]
                self.has_likelihood = False
                nn.init.constant_(model.pixels.log_scale.requires_grad_(False), math.log(HALF_A_GREY_LEVEL))
        self.critic = critic(self.image_shape)
        self.penalty_weight, self.critic_steps = penalty, critic_steps
        self.betas = (betas[0], betas[1])

    def training_step(self, x: Tensor, batch_idx: int) -> None:
        """A critic step on each part of the batch, then a generator step."""
        generator_optimiser, critic_optimiser = cast(list[LightningOptimizer], self.optimizers())
        # A last batch with fewer images than critic steps is gone through more than once.
        rows = torch.arange(max(len(x), self.critic_steps), device=x.device) % len(x)
        parts = x[rows].tensor_split(self.critic_steps)
        with self.noise("critic"):
            fakes = self.fakes(len(rows)).tensor_split(self.critic_steps)
            positions = torch.rand(len(rows), device=x.device, dtype=x.dtype).tensor_split(self.critic_steps)
        for real, fake, position in zip(parts, fakes, positions, strict=True):
            distance, penalty = self.distance(real, fake), gradient_penalty(self.critic, real, fake, position)
            loss = self.penalty_weight * penalty - distance
            # Under plain DDP every backward pass must reach every parameter: the generator's, by zeros.
            self.descend(critic_optimiser, loss + parameter_sum(self.generative))
            # As LightningOptimizer.step does, less the count.
            self.trainer.strategy.optimizer_step(critic_optimiser.optimizer, lambda: None)
        with self.noise("generator"):
            z = self.generative.sample_prior(len(parts[0]))
        score = self.critic(self.generative.likelihood(z).mean).mean()
        self.descend(generator_optimiser, -score)
        generator_optimiser.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.generative)
        self.log("train/wasserstein", distance.detach(), prog_bar=True)
        self.log("train/penalty", penalty.detach())

    def descend(self, optimiser: LightningOptimizer, loss: Tensor) -> None:
        """The gradient of the loss, alone, in the optimiser's parameters."""
        optimiser.zero_grad()
        self.manual_backward(loss)

    @torch.no_grad()
    def fakes(self, count: int) -> Tensor:
        """Means E[x|z] of the model in training, (count, C, H, W)."""
        return self.generative.likelihood(self.generative.sample_prior(count)).mean

    def distance(self, real: Tensor, fake: Tensor) -> Tensor:
        """E D(real) − E D(fake) over images (B, C, H, W), a scalar: the critic's estimate of the distance."""
        return self.critic(real).mean() - self.critic(fake).mean()

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        """Log the critic's estimate for held-out images and the evaluated model."""
        self._log_distance("val", "validation", x, batch_idx)

    def test_step(self, x: Tensor, batch_idx: int) -> None:
        """Log the critic's estimate for test images and the evaluated model."""
        self._log_distance("test", "test", x, batch_idx)

    def _log_distance(self, split: str, stream: str, x: Tensor, batch_idx: int) -> None:
        model: Any = self.evaluation_model
        with self.noise(stream, batch_idx), torch.no_grad():
            distance = self.distance(x, model.likelihood(model.sample_prior(len(x))).mean)
        self.log(f"{split}/wasserstein", distance, sync_dist=True, batch_size=len(x))

    def configure_optimizers(self) -> list[Optimizer]:  # type: ignore[override]
        """Adam for the generator, and Adam for the critic."""
        learnt = [parameter for parameter in self.generative.parameters() if parameter.requires_grad]
        return [Adam(part, lr=self.learning_rate, betas=self.betas) for part in (learnt, self.critic.parameters())]
