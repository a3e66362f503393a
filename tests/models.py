"""Small models whose truth is known, for the tests."""

from __future__ import annotations

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
