"""Factor analysis by exact maximum likelihood: what a linear Gaussian model learnt otherwise is held against.

Source: EM with the scaling of Barber, "Bayesian Reasoning and Machine Learning", 2012, section 21.2.2, as
scikit-learn's ``FactorAnalysis`` runs it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.distributions import MultivariateNormal

TOLERANCE = 1e-6  # of the log-likelihood summed over the data, between two iterations
MAX_ITERATIONS = 20_000


@dataclass(frozen=True)
class Normal:
    """N(mean, covariance) in float64: mean (D,), covariance (D, D)."""

    mean: Tensor
    covariance: Tensor

    def log_likelihood(self, x: Tensor) -> float:
        """The mean of log p(x) in nats per observation, for x (B, D)."""
        return float(MultivariateNormal(self.mean, self.covariance).log_prob(x.double().cpu()).mean())


def maximum_likelihood(x: Tensor, latent_dim: int) -> Normal:
    """The factor model of so many latents that maximises the likelihood of x (B, D).

    Warns if the iterations did not converge, as they may not where a noise scale runs to 0.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        # The whole decomposition: the default's randomised one is approximate.
        fitted = FactorAnalysis(latent_dim, tol=TOLERANCE, max_iter=MAX_ITERATIONS, svd_method="lapack").fit(
            x.double().cpu().numpy()
        )
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        warnings.warn(
            f"factor analysis by EM did not converge in {MAX_ITERATIONS} iterations; "
            "its log-likelihood may be too low.",
            stacklevel=2,
        )
    return Normal(torch.from_numpy(fitted.mean_), torch.from_numpy(fitted.get_covariance()))
