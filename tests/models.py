"""Small models whose truth is known, for the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_alws.generative import LatentVariableModel
from lightning_alws.likelihoods import LOG_2_PI, Bernoulli, Gaussian, Likelihood


class LinearGaussian(LatentVariableModel):
    """z ~ N(0, I), x|z ~ N(Wz + b, σ²I): log p(x) and its gradient are exact."""

    def __init__(self, latent_dim: int = 2, observed_dim: int = 3, log_scale: float = -0.5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(observed_dim, latent_dim, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(observed_dim, generator=generator, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(log_scale, dtype=torch.float64))

    def sample_prior(self, count: int) -> Tensor:
        return torch.randn(count, self.weight.shape[1], dtype=self.weight.dtype)

    def log_prior(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2_PI).sum(-1)

    def likelihood(self, z: Tensor) -> Likelihood:
        return Gaussian(z @ self.weight.T + self.bias, self.log_scale)

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x), exact, shape (B,)."""
        noise = torch.eye(len(self.bias), dtype=x.dtype) * (2 * self.log_scale).exp()
        return torch.distributions.MultivariateNormal(self.bias, self.weight @ self.weight.T + noise).log_prob(x)


class LearntPrior(LatentVariableModel):
    """z ~ N(m, 1), x_d|z ~ Bernoulli(sigmoid(w_d z)): a prior with a parameter, discrete observations."""

    prior_is_learnt = True

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.prior_mean = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
        self.weight = nn.Parameter(torch.randn(1, 4, generator=generator, dtype=torch.float64))

    def sample_prior(self, count: int) -> Tensor:
        return self.prior_mean.detach() + torch.randn(count, 1, dtype=self.weight.dtype)

    def log_prior(self, z: Tensor) -> Tensor:
        return -0.5 * ((z - self.prior_mean).square() + LOG_2_PI).sum(-1)

    def likelihood(self, z: Tensor) -> Likelihood:
        return Bernoulli(z @ self.weight)


def flat_gradient(value: Tensor, module: nn.Module) -> Tensor:
    """The gradient of a scalar with respect to all parameters that require one, as one vector."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )


class Curve(LatentVariableModel):
    """z ~ N(0, 1), x|z ~ N(w f(z), σ²) in one dimension: the posterior is a grid's, of as many modes as f allows."""

    def __init__(self, curve: Callable[[Tensor], Tensor], scale: float) -> None:
        super().__init__()
        self.curve = curve
        self.weight = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
        self.register_buffer("log_scale", torch.tensor(scale, dtype=torch.float64).log())

    def sample_prior(self, count: int) -> Tensor:
        return torch.randn(count, 1, dtype=self.weight.dtype)

    def log_prior(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2_PI).sum(-1)

    def likelihood(self, z: Tensor) -> Likelihood:
        return Gaussian(self.curve(z) * self.weight, self.log_scale)

    def log_posterior(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(z_n|x) up to a constant for one x (1,) and z (N,), shape (N,)."""
        z = z[:, None]
        return (self.log_prior(z) + self.likelihood(z).log_prob(x.expand(len(z), 1))).detach()


def distance_to_grid(draws: Tensor, log_density: Callable[[Tensor], Tensor], limit: float = 8.0) -> float:
    """Kolmogorov-Smirnov distance of draws (n,) from the law with that unnormalised log density on (−limit, limit)."""
    line = torch.linspace(-limit, limit, 16_001, dtype=torch.float64)
    density = log_density(line)
    mass = (density - density.max()).exp()
    steps = torch.cat([mass.new_zeros(1), (0.5 * (mass[1:] + mass[:-1])).cumsum(0)])
    distribution = steps / steps[-1]
    values = draws.double().nan_to_num(limit).sort().values
    position = (values.clamp(-limit, limit) + limit) / (line[1] - line[0])
    index = position.long().clamp_max(len(line) - 2)
    law = distribution[index].lerp(distribution[index + 1], position - index)
    rank = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    return float(torch.maximum((law - rank[:-1]).abs(), (law - rank[1:]).abs()).max())
