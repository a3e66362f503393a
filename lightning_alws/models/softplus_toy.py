"""Two Gaussian latents behind one softplus, whose log p(x) and gradient are integrals over a single line.

    z ~ N(0, I₂),   x|z ~ N(softplus(b·z) − ‖b‖², σ²)

Since b·z = s u with s = ‖b‖ and u ~ N(0, 1), log p(x) depends on b through s alone, and with m(u) = softplus(su) − s²

    p(x) = ∫ φ(u) N(x; m(u), σ²) du,   ∇_b log p(x) = (b/s) E_{u|x}[(x − m(u))/σ² · (u sigmoid(su) − 2s)].

The posterior p(z|x) is no Gaussian, and correlated unless b lies along an axis: what mean-field methods make of that is
:mod:`lightning_alws.metrics.variational`. Source: the authors' slides of 25 February 2020, which give no values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.likelihoods import LOG_2_PI, Gaussian, Likelihood

REACH = 10.0  # the quadrature covers |u| ≤ 10, beyond which φ(u) < 1e-22
NODES = 4001  # 0.005 apart: a tenth of the narrowest posterior of u, for which the trapezoid rule is exact to rounding


class SoftplusGenerator(LatentVariableModel):
    """p(z) = N(0, I₂), p_θ(x|z) = N(softplus(b·z) − ‖b‖², σ²), x of shape (1,), with log p(x) by quadrature.

    Args:
        norm: ‖b‖ at first.
        angle: of b to the first latent's axis, in degrees; log p(x) does not depend on it, a mean-field posterior does.
        noise_scale: σ, at first if it is learnt.
        learn_noise: whether σ is learnt.

    Raises:
        UserError: ``norm`` or ``noise_scale`` is not positive.
    """

    def __init__(
        self, norm: float = 1.0, angle: float = 45.0, noise_scale: float = 0.3, learn_noise: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("norm", norm), ("noise_scale", noise_scale)):
            # At b = 0 the gradient is zero for every x: nothing would ever be learnt.
            if not 0 < value < math.inf:
                raise UserError(f"model.{name} is {value}; give a positive number, such as 0.5.")
        direction = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
        self.weight = nn.Parameter(norm * direction)
        self.log_scale = nn.Parameter(torch.tensor(float(noise_scale)).log(), requires_grad=learn_noise)

    def sample_prior(self, count: int) -> Tensor:
        return torch.randn(count, 2, device=self.weight.device, dtype=self.weight.dtype)

    def log_prior(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2_PI).sum(-1)

    def likelihood(self, z: Tensor) -> Likelihood:
        mean = softplus(z @ self.weight) - self.weight.square().sum()
        return Gaussian(mean[:, None], self.log_scale)

    @property
    def norm(self) -> Tensor:
        """‖b‖, a scalar: all that the data can tell of b."""
        return self.weight.square().sum().sqrt()

    @property
    def scale(self) -> Tensor:
        """σ, a scalar."""
        return self.log_scale.exp()

    def watched(self) -> dict[str, Tensor]:
        return {"norm": self.norm, "noise_scale": self.scale}

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x) for x (B, 1), shape (B,); differentiable in b and σ."""
        return torch.logsumexp(self._log_integrand(x)[1], dim=1)

    @torch.no_grad()
    def exact_gradient(self, x: Tensor) -> Tensor:
        """∇_b log p(x) for x (B, 1), shape (B, 2)."""
        u, posterior = self._posterior(x)
        mean = softplus(self.norm * u) - self.norm.square()
        slope = u * torch.sigmoid(self.norm * u) - 2 * self.norm
        along = (posterior * (x - mean) / self.scale.square() * slope).sum(1)
        return along[:, None] * self.weight / self.norm

    @torch.no_grad()
    def posterior_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E[z|x] and the variances of z₁ and z₂ given x, for x (B, 1), both (B, 2).

        Across b, z keeps its prior; along it, it is u b/s.
        """
        u, posterior = self._posterior(x)
        mean = (posterior * u).sum(1, keepdim=True)
        variance = (posterior * (u - mean).square()).sum(1, keepdim=True)
        direction = self.weight / self.norm
        return mean * direction, 1 + (variance - 1) * direction.square()

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes u (K,) and their posterior probabilities (B, K)."""
        u, log_integrand = self._log_integrand(x)
        return u, log_integrand.softmax(dim=1)

    def _log_integrand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes u (K,) and log φ(u) N(x; m(u), σ²) du at them, shape (B, K)."""
        u = torch.linspace(-REACH, REACH, NODES, device=x.device, dtype=x.dtype)
        mean = softplus(self.norm * u) - self.norm.square()
        log_likelihood = -0.5 * ((x - mean) / self.scale).square() - self.log_scale
        return u, log_likelihood - 0.5 * u.square() - LOG_2_PI + math.log(2 * REACH / (NODES - 1))


class SoftplusToy(AmortisedLearning):
    """The softplus toy trained by amortised learning. Only ‖b‖ (and σ) can be learnt: b's direction changes nothing.

    Args:
        norm: ‖b‖ at first.
        angle: of b to the first latent's axis, in degrees.
        noise_scale: σ, at first if it is learnt.
        learn_noise: whether σ is learnt.
        learning: how it is trained.
        event_shape: (1,); comes from the data module.
    """

    def __init__(
        self,
        norm: float = 1.0,
        angle: float = 45.0,
        noise_scale: float = 0.3,
        learn_noise: bool = False,
        learning: Learning = Learning(),  # noqa: B008 (frozen)
        event_shape: tuple[int, ...] | None = None,
    ) -> None:
        if event_shape is not None and tuple(event_shape) != (1,):
            raise UserError(
                f"the data's observations have shape {tuple(event_shape)}, but SoftplusToy makes single numbers, of "
                "shape (1,); choose other data or another model."
            )
        super().__init__(SoftplusGenerator(norm, angle, noise_scale, learn_noise), learning)
        self.save_hyperparameters()
