"""The logistic distribution on a grid of grey values: no exponential family, unlike the others here.

Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling, "Improved variational inference with inverse
autoregressive flow", NeurIPS 2016, section 5.2 (https://arxiv.org/abs/1606.04934).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lightning_alws.errors import UserError
from lightning_alws.likelihoods.family import Likelihood, TensorMap

LEVELS = 256
MOST_PRODUCTS = 2**31  # of sleep samples, observations and pixels
PART = 2**22  # of them at once
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
        return _log_mass(x, self.location, self.log_scale).flatten(1).sum(-1)

    def expectation(self, weights: Tensor, x: Tensor) -> Tensor:
        """Σ_n W_nb log P(x_b|z_n), shape (B,), from every pair (n, b): no statistic of x stands for all of them.

        In parts, each computed anew in the backward pass, so that memory does not grow with the number of pairs. On a
        toy of 4 pixels with an exact gradient (``benchmarks/logistic_pixels.py``) its relative error was 0.6 to 0.9 of
        that of the direct form, at N = 500 to 2 000 and every ridge tried.

        Args:
            weights: W (N, B).
            x: observations (B, *event).

        Raises:
            UserError: there are more than 2³¹ products of pairs and pixels, some seconds of a GPU's time.
        """
        count, pixels = len(self.location), self.location[0].numel()
        if count * len(x) * pixels > MOST_PRODUCTS:
            raise UserError(
                f"model.pixels is 'logistic', of which amortised learning takes every pair of {count} sleep samples "
                f"and {len(x)} images of {pixels} pixels, more than {MOST_PRODUCTS:.0e} numbers; lower "
                "model.learning.sleep_samples or data.batch_size, or set model.learning.mode direct or model.pixels "
                "gaussian."
            )
        return _Pairs.apply(self.location.flatten(1), self.log_scale, weights, x.flatten(1))

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
            "model.pixels is 'logistic', which has no natural parameters to regress; leave NaturalParameterError out "
            "of model.learning.kernel_objective (LogJointError needs none), or use other pixels."
        )


def _log_mass(x: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """log of the mass of the bins around x, for x and locations of shapes that go together."""
    inverse = (-log_scale).exp()
    distance = x - location
    below = logsigmoid((distance + HALF_BIN) * inverse)  # log of the mass below the bin's upper end
    above = logsigmoid((HALF_BIN - distance) * inverse)
    width = (-torch.expm1(-2 * HALF_BIN * inverse)).log()
    lowest, highest = x < -1 + HALF_BIN, x > 1 - HALF_BIN
    inside = (below + above + width).masked_fill(lowest | highest, 0)
    return inside + below.masked_fill(~lowest, 0) + above.masked_fill(~highest, 0)


def _weighted_pairs(location: Tensor, log_scale: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """Σ_n W_nb log P(x_b|z_n) from location (N, D), weights (N, B) and x (B, D), shape (B,)."""
    return (weights * _log_mass(x, location[:, None], log_scale).sum(-1)).sum(0)


class _Pairs(torch.autograd.Function):
    """:func:`_weighted_pairs` in parts of the observations, each computed anew in the backward pass."""

    @staticmethod
    def forward(ctx: Any, location: Tensor, log_scale: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """Σ_n W_nb log P(x_b|z_n), shape (B,); keeps the inputs alone."""
        ctx.save_for_backward(location, log_scale, weights, x)
        return torch.cat([_weighted_pairs(location, log_scale, w, y) for w, y in _parts(location, weights, x)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in location, log_scale and weights, each part's values computed again; none in x."""
        location, log_scale, weights, x = ctx.saved_tensors
        total = [torch.zeros_like(location), torch.zeros_like(log_scale)]
        of_weights = []
        size = _part_size(location)
        for (w, y), gradient in zip(_parts(location, weights, x), gradients[0].split(size), strict=True):
            with torch.enable_grad():
                inputs = [part.detach().requires_grad_() for part in (location, log_scale, w)]
                value = _weighted_pairs(inputs[0], inputs[1], inputs[2], y)
            found = torch.autograd.grad(value, inputs, gradient)
            total = [one + other for one, other in zip(total, found[:2], strict=True)]
            of_weights.append(found[2])
        return total[0], total[1], torch.cat(of_weights, dim=1), None


def _part_size(location: Tensor) -> int:
    return max(1, PART // location.numel())


def _parts(location: Tensor, weights: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = _part_size(location)
    return zip(weights.split(size, dim=1), x.split(size), strict=True)
