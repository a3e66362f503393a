"""A prior over binary latents: each 1 with a probability of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lightning_alws.errors import check_at_least
from lightning_alws.priors.fixed import Prior


class BernoulliPrior(Prior):
    """z_d ~ Bernoulli(sigmoid(α_d)) independently, shape (N, dim), floats 0 and 1; probability ½ each at first.

    Source: the topmost layer of a sigmoid belief network (Neal, "Connectionist learning of belief networks", 1992).

    Args:
        dim: number of latents.
        learnt: whether α are parameters; probability ½ for good otherwise.

    Raises:
        UserError: ``dim`` is less than 1.
    """

    real = False
    logits: Tensor

    def __init__(self, dim: int, learnt: bool = True) -> None:
        super().__init__()
        check_at_least("prior", dim=(dim, 1))
        self.dim, self.learnt = dim, learnt
        if learnt:
            self.logits = nn.Parameter(torch.zeros(dim))
        else:
            self.register_buffer("logits", torch.zeros(dim))

    @property
    def probabilities(self) -> Tensor:
        """p(z_d = 1), shape (dim,)."""
        return self.logits.sigmoid()

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        # torch.bernoulli raises for a NaN, on this rank alone; the NaN is found in log_prob instead.
        return torch.bernoulli(self.probabilities.nan_to_num(0.5).expand(count, self.dim))

    def log_prob(self, z: Tensor) -> Tensor:
        return (z * self.logits - softplus(self.logits)).sum(-1)
