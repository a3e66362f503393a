"""Priors with parameters θ: log p_θ(z) is part of the regression's target log p_θ(z, x)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.likelihoods import LOG_2_PI
from lightning_alws.priors.fixed import Prior

_validates = Distribution._validate_args
from zuko.flows import NSF  # noqa: E402

# zuko switches torch's checks of arguments off, for every user of torch.distributions in the process.
Distribution.set_default_validate_args(_validates)

JITTER = 1e-6  # added to the variances of a mixture's components, as in the published code


class CategoricalPrior(Prior):
    """z ~ Cat(softmax(α)), shape (N,), int64; uniform at first.

    Args:
        num_classes: K.
        learnt: whether α is a parameter; uniform for good otherwise.

    Raises:
        UserError: ``num_classes`` is less than 1.
    """

    real = False
    logits: Tensor

    def __init__(self, num_classes: int, learnt: bool = True) -> None:
        super().__init__()
        check_at_least("prior", num_classes=(num_classes, 1))
        self.num_classes, self.learnt = num_classes, learnt
        logits = torch.ones(num_classes)
        if learnt:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits)

    @property
    def log_probabilities(self) -> Tensor:
        """log p(z = k), shape (K,)."""
        return self.logits.log_softmax(-1)

    @property
    def probabilities(self) -> Tensor:
        """p(z = k), shape (K,)."""
        return self.logits.softmax(-1)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        # torch.multinomial raises for a NaN, on this rank alone; the NaN is found in log_prob instead.
        return torch.multinomial(self.probabilities.nan_to_num(1.0), count, replacement=True)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.log_probabilities[z]

    def values(self, z: Tensor) -> Tensor:
        """One indicator for each class, (N, K)."""
        return nn.functional.one_hot(z, self.num_classes).to(self.logits.dtype)


class GaussianMixturePrior(Prior):
    """k ~ Cat(softmax(α)), v|k ~ N(μ_k, C_k C_kᵀ + 1e-6 I); z = (k, v) packed as one tensor (N, 1 + dim).

    The component is part of the latent, and not summed out: log p(z) = log p(k) + log p(v|k).
    Source: the pinwheel experiment of kevin-w-li/al-ws; α = 1, μ ~ 0.5 N(0, I), C = 0.3 I at first.

    Args:
        components: K.
        dim: dimension of v.
        mean_scale: scale of the initial μ.
        scale: of the initial C, a multiple of the identity.
        covariance: "full", C any matrix; "diagonal", C a diagonal one.

    Raises:
        UserError: an argument makes no sense.
    """

    learnt = True
    real = False

    def __init__(
        self,
        components: int,
        dim: int,
        mean_scale: float = 0.5,
        scale: float = 0.3,
        covariance: Literal["full", "diagonal"] = "full",
    ) -> None:
        super().__init__()
        check_at_least("prior", components=(components, 1), dim=(dim, 1), mean_scale=(mean_scale, 0))
        # C = 0 is a saddle: C Cᵀ has no gradient there.
        if not 0 < scale < math.inf:
            raise UserError(f"prior.scale is {scale}; give a positive number.")
        if covariance not in ("full", "diagonal"):
            raise UserError(f"prior.covariance is '{covariance}'; it must be one of full, diagonal.")
        self.dim = dim
        self.component = CategoricalPrior(components)
        self.means = nn.Parameter(mean_scale * torch.randn(components, dim))
        factor = torch.eye(dim) if covariance == "full" else torch.ones(dim)
        self.factors = nn.Parameter(scale * factor.repeat(components, *[1] * factor.dim()))

    @property
    def log_probabilities(self) -> Tensor:
        """log p(k), shape (K,)."""
        return self.component.log_probabilities

    @property
    def probabilities(self) -> Tensor:
        """p(k), shape (K,)."""
        return self.component.probabilities

    @property
    def covariances(self) -> Tensor:
        """C_k C_kᵀ + 1e-6 I, shape (K, dim, dim)."""
        factors = self._square_factors
        return factors @ factors.mT + JITTER * torch.eye(self.dim, device=factors.device, dtype=factors.dtype)

    @property
    def _square_factors(self) -> Tensor:
        return self.factors if self.factors.dim() == 3 else self.factors.diag_embed()

    @staticmethod
    def unpack(z: Tensor) -> tuple[Tensor, Tensor]:
        """Components (N,), int64, and values (N, dim) of z (N, 1 + dim)."""
        return z[:, 0].long(), z[:, 1:]

    @staticmethod
    def pack(component: Tensor, value: Tensor) -> Tensor:
        """z (N, 1 + dim) of components (N,), int64, and values (N, dim)."""
        return torch.cat([component[:, None].to(value.dtype), value], dim=1)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        return self._given(self.component.sample(count))

    @torch.no_grad()
    def sample_component(self, component: int, count: int) -> Tensor:
        """Draws of one component, (count, 1 + dim), without gradient."""
        return self._given(torch.full((count,), component, device=self.means.device))

    def _given(self, component: Tensor) -> Tensor:
        """z with v ~ p(v|k) for components (N,)."""
        count = len(component)
        noise, jitter = torch.randn(2, count, self.dim, device=self.means.device, dtype=self.means.dtype)
        spread = (self._square_factors[component] @ noise[:, :, None])[:, :, 0] + JITTER**0.5 * jitter
        return self.pack(component, self.means[component] + spread)

    def values(self, z: Tensor) -> Tensor:
        """v, shape (N, dim): what follows must find the component in it."""
        return z[:, 1:]

    def statistics(self, z: Tensor) -> dict[str, Tensor]:
        """``component``, one indicator for each, (N, K), and ``value`` v, (N, dim)."""
        component, value = self.unpack(z)
        return {"component": nn.functional.one_hot(component, len(self.means)).to(value.dtype), "value": value}

    def log_joint(self, value: Tensor) -> Tensor:
        """log p(k, v_n) of all components for values (N, dim), shape (N, K); its softmax over k is p(k|v_n)."""
        count = len(self.means)
        components = torch.arange(count, device=value.device).repeat(len(value))
        return self.log_prob(self.pack(components, value.repeat_interleave(count, 0))).view(len(value), count)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(k_n) p(v_n|k_n) of packed z (N, 1 + dim), shape (N,)."""
        component, value = self.unpack(z)
        # The Cholesky factor of C Cᵀ + εI is Rᵀ of [Cᵀ; √ε I] = QR, found without squaring the condition number.
        factors = self._square_factors
        root = JITTER**0.5 * torch.eye(self.dim, device=factors.device, dtype=factors.dtype).expand_as(factors)
        lower = torch.linalg.qr(torch.cat([factors.mT, root], dim=1)).R.mT
        residual = (value - self.means[component])[:, :, None]
        standard = torch.linalg.solve_triangular(lower[component], residual, upper=False)[:, :, 0]
        log_volume = lower.diagonal(dim1=1, dim2=2).abs().log().sum(-1)
        density = -0.5 * (standard.square() + LOG_2_PI).sum(-1) - log_volume[component]
        return self.component.log_prob(component) + density


class FlowPrior(Prior):
    """A learnt density: a neural spline flow to a standard normal, shape (N, dim).

    Source: Durkan et al., "Neural Spline Flows", NeurIPS 2019, https://arxiv.org/abs/1906.04032, as zuko has it. Its
    splines act on [−5, 5] and leave what lies beyond as it is.
    At first the density is within some 0.25 nats per dimension of N(0, I).

    Args:
        dim: dimension of z.
        transforms: number of spline transformations.
        bins: pieces of each spline.
        hidden: widths of the hidden layers of each transformation's network.
        coupling: half of the dimensions given the other half, and sampling takes 2 passes; otherwise each dimension
            given those before it, which fits more, and sampling takes ``dim`` passes.

    Raises:
        UserError: an argument makes no sense.
    """

    learnt = True

    def __init__(
        self,
        dim: int,
        transforms: int = 3,
        bins: int = 8,
        hidden: tuple[int, ...] = (64, 64),
        coupling: bool = False,
    ) -> None:
        super().__init__()
        check_at_least("prior", dim=(dim, 1), transforms=(transforms, 1), bins=(bins, 2))
        if any(width < 1 for width in hidden):
            raise UserError(f"prior.hidden is {list(hidden)}; give widths of at least 1.")
        self.dim = dim
        passes = 2 if coupling else None
        self.flow = NSF(dim, transforms=transforms, bins=bins, hidden_features=tuple(hidden), passes=passes)
        if dim == 1:
            # One dimension has nothing to condition on: zuko draws its splines, of many narrow peaks, from N(0, 1).
            with torch.no_grad():
                for parameter in self.flow.parameters():
                    parameter.mul_(0.1)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        noise = torch.randn(count, self.dim, device=self._like.device, dtype=self._like.dtype)
        return self.flow().transform.inv(noise)

    def log_prob(self, z: Tensor) -> Tensor:
        # Not the flow's own log_prob: torch's base distribution raises for a NaN, on this rank alone.
        noise, log_slope = self.flow().transform.call_and_ladj(z)
        return log_slope - 0.5 * (noise.square() + LOG_2_PI).sum(-1)
