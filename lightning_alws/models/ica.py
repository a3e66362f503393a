"""Independent component analysis with noise: z_i ~ Laplace(0, 1), x|z ~ N(Wz, σ²I); W and σ are learnt.

Source: the ICA experiment of kevin-w-li/al-ws, the code of Wenliang et al., ICML 2020.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.generative import Joint, Latents, PlugIn
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import LOG_2_PI, Gaussian, Likelihood, TensorMap
from lightning_alws.models.prior_model import PriorModel
from lightning_alws.priors import LaplacePrior
from lightning_alws.regression import KernelRidge
from lightning_alws.residual import Reference, ResidualPlugIn

PRIOR_VARIANCE = 2.0  # of Laplace(0, 1)


class IndependentComponents(PriorModel):
    """p(z_i) = Laplace(0, 1), p_θ(x|z) = N(Wz, σ²I), without a bias: the data are taken to be centred.

    Args:
        event_shape: shape of one observation, D entries in all.
        latent_dim: dimension of z.
        weight_std: W_di ~ N(0, weight_std²) at first (published: 0.01).
        scale: σ at first (published: 1).
        scale_rate: r, where σ = e^{rs} and s is learnt: each of Adam's steps moves log σ by r times the learning rate
            at most (published: 1).
        residual: regress what the posterior under a normal prior of the same variance leaves unexplained
            (:mod:`lightning_alws.residual`); otherwise, as published, the natural parameters themselves.

    Raises:
        UserError: the event shape is missing, or a number makes no sense.
    """

    def __init__(
        self,
        event_shape: tuple[int, ...] | None,
        latent_dim: int = 36,
        weight_std: float = 0.01,
        scale: float = 1.0,
        scale_rate: float = 1.0,
        residual: bool = True,
    ) -> None:
        if event_shape is None:
            raise UserError(
                "the data module has no attribute 'event_shape', the shape of one observation, which this model takes "
                "from it; use data of numbers such as ICAMixtures, or define it in yours."
            )
        check_at_least("model", latent_dim=(latent_dim, 1))
        for name, value in (("weight_std", weight_std), ("scale", scale), ("scale_rate", scale_rate)):
            if not 0 < value < math.inf:
                raise UserError(f"model.{name} is {value}; give a positive number.")
        super().__init__(LaplacePrior(latent_dim))
        self.event_shape, self.scale_rate, self.residual = tuple(event_shape), scale_rate, residual
        self.weight = nn.Parameter(weight_std * torch.randn(math.prod(self.event_shape), latent_dim))
        self.scale_exponent = nn.Parameter(torch.tensor(math.log(scale) / scale_rate))

    @property
    def filters(self) -> Tensor:
        """W, one filter a column, shape (D, latent_dim)."""
        return self.weight

    @property
    def log_scale(self) -> Tensor:
        """log σ, a scalar."""
        return self.scale_rate * self.scale_exponent

    @property
    def scale(self) -> Tensor:
        """σ, a scalar."""
        return self.log_scale.exp()

    def likelihood(self, z: Tensor) -> Likelihood:
        return Gaussian((z @ self.weight.T).unflatten(1, self.event_shape), self.log_scale)

    @torch.no_grad()
    def linear_posterior(self) -> tuple[Tensor, Tensor]:
        """B (latent_dim, D) and C of N(Bx, C), what p(z|x) would be had z the prior N(0, 2I); without gradient."""
        precision = self.weight.T @ self.weight / self.scale.square()
        precision = (
            precision + torch.eye(len(precision), dtype=precision.dtype, device=precision.device) / PRIOR_VARIANCE
        )
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        return covariance @ self.weight.T / self.scale.square(), covariance

    def joint_given(self, likelihood: Likelihood, z: Tensor, x: Tensor, direct: bool) -> Joint:
        """As of any model, with the residual joint where that is chosen."""
        joint = super().joint_given(likelihood, z, x, direct)
        if not self.residual or not isinstance(joint, PlugIn):
            return joint
        reference = LinearReference(self.weight, self.log_scale, *self.linear_posterior())
        return ResidualPlugIn(x, likelihood, joint.log_prior, reference)

    def joint(self, z: Latents, x: Tensor, direct: bool) -> Joint:
        if self.residual and not direct:
            raise UserError(
                "model.learning.chunk is given, but with model.residual a prediction is no sum over the sleep samples; "
                "set model.residual to false, or leave the chunk out."
            )
        return super().joint(z, x, direct)

    def watched(self) -> dict[str, Tensor]:
        return {"noise_scale": self.scale}


@dataclass(frozen=True)
class LinearReference(Reference):
    """E[η(z)] and E[Ψ(z)] of p(x|z) = N(Wz, σ²I) under z ~ N(Bx, C).

    Attributes:
        weight: W (D, K), differentiable.
        log_scale: log σ, differentiable.
        gain: B (K, D).
        covariance: C (K, K).
    """

    weight: Tensor
    log_scale: Tensor
    gain: Tensor
    covariance: Tensor

    def expectation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E[η(z)] (B, D + 1) and E[Ψ(z)] (B,) under z ~ N(Bx, C), for x (B, *event); differentiable in W and σ."""
        precision = (-2 * self.log_scale).exp()
        mean = x.flatten(1) @ self.gain.T @ self.weight.T
        spread = ((self.weight @ self.covariance) * self.weight).sum()
        dimension = len(self.weight)
        normaliser = 0.5 * (precision * (mean.square().sum(-1) + spread) + dimension * (LOG_2_PI + 2 * self.log_scale))
        return torch.cat([mean * precision, (-0.5 * precision).expand(len(x), 1)], dim=1), normaliser

    def map(self, function: TensorMap) -> Self:
        return type(self)(function(self.weight), function(self.log_scale), self.gain, self.covariance)


class SourceFeatures(nn.Module):
    """x → u/std(u) and tanh(u/(τ + width)), u = Bx the linear posterior mean of the sources and τ² its variance.

    p(z|x) depends on x only through Wᵀx, hence through u. Under the Laplace prior E[z|x] differs from u by about ± a
    constant, with the sign of each source: the second half of the features. They follow the model as it is learnt.

    Args:
        event_shape: shape of one observation.
        width: added to τ.

    Raises:
        UserError: the model is another than ICA.
    """

    def __init__(self, event_shape: tuple[int, ...], width: float = 1.0) -> None:
        super().__init__()
        self.width = width
        self._model: tuple[IndependentComponents, ...] = ()  # in a tuple, so that it is no submodule

    def follow(self, model: IndependentComponents) -> None:
        """Take B and τ from this model from now on."""
        self._model = (model,)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The model's own estimates of the sources from x, as kernel features."""
        if not self._model:
            raise UserError("the kernel's features are SourceFeatures, which only the model ICA has; choose others.")
        (model,) = self._model
        gain, covariance = model.linear_posterior()
        sources = x.flatten(1) @ gain.T
        through = gain @ model.weight
        variance = PRIOR_VARIANCE * through.square().sum(1) + (model.scale * gain).square().sum(1)
        return torch.cat([sources / variance.sqrt(), (sources / (covariance.diagonal().sqrt() + self.width)).tanh()], 1)


class ICA(AmortisedLearning):
    """Noisy independent component analysis trained by amortised learning.

    Args:
        latent_dim: dimension of z.
        learning: how it is trained.
        weight_std: standard deviation of the initial weights.
        scale: initial noise scale σ.
        scale_rate: how fast log σ moves, in learning rates.
        scale_held: σ keeps its first value for that many steps. While it is large the rotation of W is found in some
            hundred steps; where it falls sooner, the gradient's noise, which grows as 1/σ, may hide what is left.
        residual: whether what is regressed is the deviation from a linear posterior.
        event_shape: shape of one observation; comes from the data module.
    """

    def __init__(
        self,
        latent_dim: int = 36,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        weight_std: float = 0.01,
        scale: float = 1.0,
        scale_rate: float = 1.0,
        scale_held: int = 0,
        residual: bool = True,
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        model = IndependentComponents(event_shape, latent_dim, weight_std, scale, scale_rate, residual)

        def regression(shape: tuple[int, ...]) -> KernelRidge:
            built = learning.regression(shape)
            for part in built.modules():
                if isinstance(part, SourceFeatures):
                    part.follow(model)
            return built

        check_at_least("model", scale_held=(scale_held, 0))
        super().__init__(model, dataclasses.replace(learning, regression=regression))
        self.scale_held = scale_held
        self.save_hyperparameters()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.global_step < self.scale_held:
            self.generative.scale_exponent.grad = None
