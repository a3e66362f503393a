"""Priors p_θ(z) over latents: normal, Laplace, uniform, circle, binary, categorical, mixture of Gaussians, flow."""

from lightning_alws.priors.binary import BernoulliPrior
from lightning_alws.priors.fixed import CirclePrior, LaplacePrior, Prior, PriorBuilder, StandardNormal, UniformPrior
from lightning_alws.priors.learnt import CategoricalPrior, FlowPrior, GaussianMixturePrior

__all__ = [
    "BernoulliPrior",
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
