"""What models share whose latents have one of the package's priors."""

from __future__ import annotations

from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.generative import Latents, LatentVariableModel
from lightning_alws.priors import Prior, PriorBuilder


class PriorModel(LatentVariableModel):
    """p_θ(z) is a :class:`~lightning_alws.priors.Prior`; a subclass adds p_θ(x|z).

    Args:
        prior: of z; kept under that name, with its parameters.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior
        self.prior_is_learnt, self.latents_are_real = prior.learnt, prior.real

    def sample_prior(self, count: int) -> Tensor:
        """z_n ~ p_θ(z), shape (count, ...)."""
        return self.prior.sample(count)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p_θ(z_n) for z (N, ...), shape (N,)."""
        return self.prior.log_prob(z)

    def statistics(self, z: Latents) -> Latents:
        """The prior's, of z (N, ...); latents that have names are statistics already."""
        return z if isinstance(z, dict) else self.prior.statistics(z)


def prior_over(prior: PriorBuilder, dim: int) -> Prior:
    """The prior over ``dim`` numbers; a UserError where it takes no such argument."""
    try:
        return prior(dim=dim)
    except TypeError as error:
        raise UserError(
            f"model.prior is no prior over {dim} numbers ({error}); use StandardNormal, LaplacePrior, UniformPrior, "
            "BernoulliPrior, GaussianMixturePrior or FlowPrior."
        ) from error
