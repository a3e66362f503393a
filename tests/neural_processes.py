"""A neural process small enough to integrate: one latent, two outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_alws.models.neural_process import NeuralProcess

# The first point is context; both outputs are observed.
POINTS = torch.tensor([[-1.0, 0.5, 1.0], [1.2, -0.3, 0.0]], dtype=torch.float64)


def sharpen(model: NeuralProcess) -> NeuralProcess:
    """The model, with larger weights: as initialised, neither context nor latent matters much."""
    with torch.no_grad():
        model.from_latent.weight *= 2
        model.decoder[1][-1].weight[0] *= 10  # type: ignore[index]
        for name, parameter in model.encoder.named_parameters():
            parameter *= 2 if name.endswith("weight") else 1
    return model


def tiny() -> NeuralProcess:
    """In float64, given the context of POINTS."""
    torch.manual_seed(0)
    model = sharpen(NeuralProcess((2,), latent_dim=1, width=8).double())
    model.condition(POINTS)
    return model


def latent_grid(model: NeuralProcess, nodes: int = 801) -> tuple[Tensor, Tensor]:
    """Latents (nodes, 1) at equal distances over ±8 standard deviations of the prior, and the log distance."""
    with torch.no_grad():
        mean, scale = model.prior()
        z = mean + scale * torch.linspace(-8, 8, nodes, dtype=mean.dtype)[:, None]
    return z, (z[1] - z[0]).log()


def log_marginal(model: NeuralProcess, y: Tensor) -> Tensor:
    """log p(y_b | context) for y (B, T) by quadrature over the one latent, differentiable in every parameter."""
    z, log_distance = latent_grid(model)
    likelihood = model.likelihood(z)
    log_likelihood = torch.stack([likelihood.log_prob(row.expand(len(z), -1)) for row in y])
    return (log_likelihood + model.log_prior(z)).logsumexp(1) + log_distance
