"""Likelihoods p_θ(x|z), exponential families whose natural parameters a regression can predict."""

from lightning_alws.likelihoods.discrete import Bernoulli, Categorical, Poisson
from lightning_alws.likelihoods.family import LOG_2_PI, Likelihood, TensorMap
from lightning_alws.likelihoods.gaussian import DiagonalGaussian, Gaussian, LogNormal

__all__ = [
    "LOG_2_PI",
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "Gaussian",
    "Likelihood",
    "LogNormal",
    "Poisson",
    "TensorMap",
]
