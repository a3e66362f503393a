"""What variational methods make of ∇_θ log p_θ(x): a mean-field Gaussian q(z|x) fitted to each x by itself.

With K draws z_k ~ q and weights w_k = p_θ(x, z_k) / q(z_k|x),

    bound      L_K(x) = E[log (1/K) Σ_k w_k]                 K = 1: the ELBO of a VAE; K > 1: the IWAE's bound
    gradient   E[Σ_k w̃_k ∇_θ log p_θ(x, z_k)],  w̃_k = w_k / Σ_j w_j

The gradient is that of L_K, and also the wake phase of reweighted wake-sleep, whose q matches the posterior's moments
rather than maximise L_K. There is no encoder: each x has a mean and scales of its own, fitted until they settle, which
is the most that any encoder could reach. Sources: Burda, Grosse, Salakhutdinov, ICLR 2016
(https://arxiv.org/abs/1509.00519); Bornschein, Bengio, ICLR 2015 (https://arxiv.org/abs/1406.2751).

All draws come from torch's global generators: wrap the calls in :func:`lightning_alws.noise.seeded`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_alws.generative import LatentVariableModel
from lightning_alws.likelihoods import LOG_2_PI
from lightning_alws.metrics.gradients import LogJoint, parameter_gradient


@dataclass(frozen=True)
class MeanField:
    """q(z|x_b) = Π_d N(z_d; mean_bd, scale_bd²) for B observations.

    Attributes:
        mean: (B, D).
        log_scale: (B, D).
    """

    mean: Tensor
    log_scale: Tensor

    def sample(self, *shape: int) -> Tensor:
        """z (*shape, B, D), reparameterised."""
        noise = torch.randn(*shape, *self.mean.shape, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.log_scale.exp() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z|x_b) for z (..., B, D), shape (..., B)."""
        squared = ((z - self.mean) * (-self.log_scale).exp()).square()
        return -0.5 * (squared + 2 * self.log_scale + LOG_2_PI).sum(-1)

    def detach(self) -> MeanField:
        """The same without gradient."""
        return MeanField(self.mean.detach(), self.log_scale.detach())


def fit_mean_field(
    model: LatentVariableModel,
    x: Tensor,
    start: MeanField,
    particles: int,
    sets: int = 4,
    steps: int = 300,
    learning_rate: float = 0.05,
) -> MeanField:
    """The q that maximises L_K for each of B observations, all at once, by Adam with a step size that falls to zero.

    The doubly reparameterised gradient is used: its noise does not grow with K and vanishes where q is the posterior
    (Tucker, Lawson, Gu, Maddison, ICLR 2019, https://arxiv.org/abs/1810.04152; for K = 1 "sticking the landing").

    Args:
        model: p_θ.
        x: (B, *event).
        start: where to begin.
        particles: K.
        sets: independent sets of K draws in each step.
        steps: of Adam.
        learning_rate: at first.
    """
    log_joint = LogJoint(model)
    with torch.enable_grad():
        q = MeanField(start.mean.clone().requires_grad_(), start.log_scale.clone().requires_grad_())
        optimiser = torch.optim.Adam([q.mean, q.log_scale], lr=learning_rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            z = q.sample(sets, particles)
            log_weights = log_joint(z, x) - q.detach().log_prob(z)
            share = log_weights.detach().softmax(dim=1)
            loss = -(share.square() * log_weights).sum(1).mean(0).sum()
            gradients = torch.autograd.grad(loss, [q.mean, q.log_scale])
            q.mean.grad, q.log_scale.grad = gradients
            optimiser.step()
            schedule.step()
    return q.detach()


class WeightedLogJoint(nn.Module):
    """Σ_k w̃_k log p_θ(x_b, z_k) with weights that are no function of θ, averaged over sets."""

    def __init__(self, model: LatentVariableModel) -> None:
        super().__init__()
        self.log_joint = LogJoint(model)

    def forward(self, share: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """Weights w̃ (S, K, B), latents (S, K, B, D) and x (B, *event) → (B,)."""
        return (share * self.log_joint(z, x)).sum(1).mean(0)


@torch.no_grad()
def importance_gradient(
    model: LatentVariableModel, q: MeanField, x: Tensor, particles: int, evaluations: int
) -> Tensor:
    """Σ_k w̃_k ∇_θ log p_θ(x_b, z_k), averaged over independent sets of K draws, for x (B, *event), shape (B, P).

    Args:
        model: p_θ.
        q: the proposal.
        x: (B, *event).
        particles: K.
        evaluations: of log p_θ(x_b, z) for each x_b: ``evaluations // particles`` sets (at least one) are averaged.
    """
    weighted = WeightedLogJoint(model)
    z = q.sample(max(1, evaluations // particles), particles)
    share = (weighted.log_joint(z, x) - q.log_prob(z)).softmax(dim=1)
    return parameter_gradient(weighted, share, z, x)
