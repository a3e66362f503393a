"""Likelihoods p_θ(x|z), all but one exponential families whose natural parameters a regression can predict."""

from lightning_alws.likelihoods.discrete import Bernoulli, Categorical, Poisson
from lightning_alws.likelihoods.family import LOG_2_PI, Likelihood, TensorMap
from lightning_alws.likelihoods.gaussian import DiagonalGaussian, Gaussian, LogNormal
from lightning_alws.likelihoods.logistic import DiscretisedLogistic
from lightning_alws.likelihoods.spectral import SpectralGaussian

__all__ = [
    "LOG_2_PI",
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "DiscretisedLogistic",
    "Gaussian",
    "Likelihood",
    "LogNormal",
    "Poisson",
    "SpectralGaussian",
    "TensorMap",
]
