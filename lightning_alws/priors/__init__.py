"""Priors p_θ(z) over latents: standard normal, Laplace, uniform, circle, categorical, mixture of Gaussians, flow."""

from lightning_alws.priors.fixed import CirclePrior, LaplacePrior, Prior, PriorBuilder, StandardNormal, UniformPrior
from lightning_alws.priors.learnt import CategoricalPrior, FlowPrior, GaussianMixturePrior

__all__ = [
    "CategoricalPrior",
    "CirclePrior",
    "FlowPrior",
    "GaussianMixturePrior",
    "LaplacePrior",
    "Prior",
    "PriorBuilder",
    "StandardNormal",
    "UniformPrior",
]
