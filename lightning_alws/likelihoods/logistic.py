"""The logistic distribution on a grid of grey values: no exponential family, unlike the others here.

Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improved variational inference with inverse
autoregressive flow", NeurIPS 2016, section 5.2 (https://arxiv.org/abs/1606.04934).
"""

from __future__ import annotations

from typing import NoReturn, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lightning_alws.errors import UserError
from lightning_alws.likelihoods.family import Likelihood, TensorMap

LEVELS = 256
HALF_BIN = 1 / (LEVELS - 1)  # half the distance of two neighbouring levels in [−1, 1]


class DiscretisedLogistic(Likelihood):
    """x_d|z on the levels −1, −1 + 2/255, …, 1: the mass that a logistic law of mean μ_d and scale s has around x_d.

        P(x) = σ(a) − σ(b) with a = (x + h − μ)/s, b = (x − h − μ)/s, h = 1/255;  σ(a) for x = −1,  1 − σ(b) for x = 1

    so that the masses of the 256 levels add up to one. With σ(a) − σ(b) = σ(a) σ(−b) (1 − e^{b − a}) the logarithm is
    a sum of three terms none of which cancels, however far x is from μ, and a − b = 2h/s holds exactly.

    Args:
        location: μ, shape (N, *event).
        log_scale: log s, a scalar tensor.
    """

    exponential_family = False

    def __init__(self, location: Tensor, log_scale: Tensor) -> None:
        self.location = location
        self.log_scale = log_scale

    def log_prob(self, x: Tensor) -> Tensor:
        """log of the mass of each level's bin, summed over pixels, for x (N, *event) in [−1, 1], shape (N,)."""
        inverse = (-self.log_scale).exp()
        distance = x - self.location
        below = logsigmoid((distance + HALF_BIN) * inverse)  # log of the mass below the bin's upper end
        above = logsigmoid((HALF_BIN - distance) * inverse)
        width = (-torch.expm1(-2 * HALF_BIN * inverse)).log()
        lowest, highest = x < -1 + HALF_BIN, x > 1 - HALF_BIN
        inside = (below + above + width).masked_fill(lowest | highest, 0)
        return (inside + below.masked_fill(~lowest, 0) + above.masked_fill(~highest, 0)).flatten(1).sum(-1)

    @property
    def mean(self) -> Tensor:
        """E[x|z] without the rounding to levels, whose own error is below h: that of the law clamped to [−1, 1]."""
        scale = self.log_scale.exp()
        return scale * (softplus((self.location + 1) / scale) - softplus((self.location - 1) / scale)) - 1

    @torch.no_grad()
    def sample(self) -> Tensor:
        """One draw for each row, among the 256 levels, shape (N, *event)."""
        uniform = torch.rand_like(self.location).clamp_min(torch.finfo(self.location.dtype).tiny)
        values = self.location + self.log_scale.exp() * (uniform.log() - (-uniform).log1p())
        levels = ((values + 1) * (LEVELS - 1) / 2).round().clamp(0, LEVELS - 1)
        return levels / (LEVELS - 1) * 2 - 1

    def map(self, rows: TensorMap, shared: TensorMap) -> Self:
        return type(self)(rows(self.location), shared(self.log_scale))

    @property
    def natural_parameters(self) -> Tensor:
        self._refuse()

    @property
    def log_normaliser(self) -> Tensor:
        self._refuse()

    def sufficient_statistics(self, x: Tensor) -> Tensor:
        self._refuse()

    @staticmethod
    def _refuse() -> NoReturn:
        raise UserError(
            "model.pixels is 'logistic', but the plug-in of amortised learning needs an exponential family; use "
            "model.learning.mode 'direct', or other pixels."
        )
