"""Reweighted wake-sleep, for continuous latents with a Gaussian q and binary ones with a Bernoulli q.

With z_1 … z_K ~ q_φ(z|x), w_k = p_θ(z_k, x) / q_φ(z_k|x) and w̃_k = w_k / Σ_j w_j, each step follows

    θ            Σ_k w̃_k ∇_θ log p_θ(z_k, x)
    φ, wake      Σ_k w̃_k ∇_φ log q_φ(z_k|x)       towards argmin KL(p_θ(z|x) ‖ q) at the data
    φ, sleep     ∇_φ log q_φ(z|x) at (z, x) ~ p_θ    the same at the model's own observations

As K → ∞ the first is ∇_θ log p_θ(x). Nothing is differentiated through a draw or a weight, so that discrete latents are
no harder than continuous ones. Sources: Bornschein and Bengio, "Reweighted wake-sleep", ICLR 2015
(https://arxiv.org/abs/1406.2751); wake φ updates alone: Le, Kosiorek, Siddharth, Teh, Wood, UAI 2019
(https://arxiv.org/abs/1805.10469).

The densities are written out, not taken from torch.distributions: its checks of values read the device at every step,
and raise for a NaN on one process alone, which the others then wait for.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_alws.baselines.image import ImageEncoderMethod
from lightning_alws.baselines.lower_bound import log_joint, log_mean_weight
from lightning_alws.baselines.vae import GaussianPosterior, location_and_log_scale
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.generative import LatentVariableModel
from lightning_alws.priors import BernoulliPrior, Prior

PHASES = ("wake", "sleep", "both")


class Proposal(Protocol):
    """q(z|x) for B observations, S draws of each."""

    def sample(self) -> Tensor:
        """One draw for each row, (S, B, latent_dim)."""
        ...

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z_sb|x_b), shape (S, B)."""
        ...


class BernoulliProposal:
    """q(z_i = 1|x) = sigmoid(logits_i), independent over entries of z.

    Args:
        logits: (S, B, latent_dim).
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @torch.no_grad()
    def sample(self) -> Tensor:
        # As everywhere: torch.bernoulli raises for a NaN, on this rank alone. The NaN stays in log_prob.
        return torch.bernoulli(self.logits.sigmoid().nan_to_num(0.5))

    def log_prob(self, z: Tensor) -> Tensor:
        return (z * self.logits - softplus(self.logits)).sum(-1)


def wake_loss(log_joint: Tensor, log_q: Tensor, with_phi: bool) -> Tensor:
    """−mean_b Σ_s w̃_sb (log p_θ(z_sb, x_b) + log q(z_sb|x_b)), the weights without gradient, a scalar.

    Args:
        log_joint: log p_θ(z_sb, x_b), shape (S, B); the draws z without gradient.
        log_q: log q(z_sb|x_b), shape (S, B).
        with_phi: whether q is learnt from it too; otherwise log q is left out of the sum.
    """
    weights = (log_joint - log_q).detach().softmax(0)
    return -(weights * (log_joint + log_q if with_phi else log_joint)).sum(0).mean()


class ReweightedWakeSleep(ImageEncoderMethod):
    """Images learnt by reweighted wake-sleep; q is Gaussian, or Bernoulli where the prior is :class:`BernoulliPrior`.

    The logged bound is log (1/K) Σ_k w_k, whose expectation is the importance weighted autoencoder's L_K.

    Args:
        samples: K, draws from q(z|x) for each image.
        phi: which updates q gets: those at the data, those at the model's own samples (as many as images in each
            step), or the sum of the two.
        settings: those of :class:`~lightning_alws.baselines.image.ImageEncoderMethod`.

    Raises:
        UserError: a setting makes no sense.
    """

    bound_name = "importance_weighted_bound"

    def __init__(self, samples: int = 10, phi: Literal["wake", "sleep", "both"] = "both", **settings: Any) -> None:
        check_at_least("model", samples=(samples, 1))
        if phi not in PHASES:
            raise UserError(f"model.phi is {phi!r}; choose one of {', '.join(PHASES)}.")
        super().__init__(**settings)
        self.samples, self.phi = samples, phi
        self.binary = isinstance(self.generative.prior, BernoulliPrior)
        self.heads = nn.Linear(self.feature_width, self.latent_dim if self.binary else 2 * self.latent_dim)

    def check_prior(self, prior: Prior) -> None:
        """Raise a UserError for a prior over neither real numbers nor binary ones."""
        if not prior.real and not isinstance(prior, BernoulliPrior):
            raise UserError(
                f"model.prior is {type(prior).__name__}, whose latents are neither all real nor all binary; "
                "ReweightedWakeSleep takes priors such as StandardNormal, and BernoulliPrior."
            )

    def posterior(self, x: Tensor, samples: int = 1) -> Proposal:
        """q(z|x) for images x (B, C, H, W), ``samples`` rows of each."""
        output = self.heads(self.features(x)).expand(samples, -1, -1)
        return BernoulliProposal(output) if self.binary else GaussianPosterior(*location_and_log_scale(output))

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """A loss whose gradients are minus those of the definition, averaged over a batch."""
        model = self.generative
        with self.noise("posterior"):
            q = self.posterior(x, self.samples)
            z = q.sample().detach()
            dream = self.dream(len(x)) if self.phi != "wake" else None
        log_p, log_q = log_joint(model, z, x), q.log_prob(z)
        self.log(f"train/{self.bound_name}", log_mean_weight((log_p - log_q).detach()).mean(), prog_bar=True)
        loss = wake_loss(log_p, log_q, with_phi=self.phi != "sleep")
        return loss if dream is None else loss + self.sleep_loss(*dream)

    @torch.no_grad()
    def dream(self, count: int) -> tuple[Tensor, Tensor]:
        """z_n, x_n ~ p_θ: latents (count, latent_dim) and images (count, C, H, W)."""
        z = self.generative.sample_prior(count)
        return z, self.generative.likelihood(z).sample()

    def sleep_loss(self, z: Tensor, x: Tensor) -> Tensor:
        """−mean_n log q(z_n|x_n), a scalar."""
        return -self.posterior(x).log_prob(z).mean()

    def bound(self, x: Tensor, model: LatentVariableModel) -> Tensor:
        """One estimate of L_K for images x (B, C, H, W), shape (B,), in nats; its gradient in q is not the method's."""
        return log_mean_weight(self.log_weights(x, self.samples, model))

    def log_weights(self, x: Tensor, samples: int, model: LatentVariableModel) -> Tensor:
        """log p_θ(z_sb, x_b) − log q(z_sb|x_b), z_sb ~ q, for images x (B, C, H, W), shape (samples, B)."""
        q = self.posterior(x, samples)
        z = q.sample().detach()
        return log_joint(model, z, x) - q.log_prob(z)
