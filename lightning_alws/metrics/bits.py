"""Bits per dimension: what a model would need to send an image, for each of its D numbers.

    P on a grid of levels (Bernoulli, discretised logistic):  −log P(x) / (D log 2)
    a density p of real numbers, levels at distance δ:        −(log p(x + δ(u − ½)) + D log δ) / (D log 2),  u ~ U(0, 1)

The second is, in the mean over u, an upper bound of the first for P(x) = ∫ p over the bin around x (Jensen); of the
undisturbed x it would mean nothing, since a density can be as high as one likes at the levels themselves. On [−1, 1]
with 256 levels, δ = 2/255. Source: Theis, van den Oord, Bethge, "A note on the evaluation of generative models",
ICLR 2016, section 3.1 (https://arxiv.org/abs/1511.01844).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dequantise(x: Tensor, spacing: float, generator: torch.Generator) -> Tensor:
    """x + δ(u − ½), u ~ U(0, 1) drawn on the CPU, for levels x of any shape at distance δ."""
    return x + spacing * (torch.rand(x.shape, generator=generator).to(x) - 0.5)


def bits_per_dimension(log_likelihood: Tensor, dimensions: int, spacing: float | None = None) -> Tensor:
    """Bits per dimension of images.

    Args:
        log_likelihood: nats per image, (N,) or a scalar: log P(x), or log p of a density at dequantised x.
        dimensions: D.
        spacing: δ for a density; None for log P(x).
    """
    added = 0.0 if spacing is None else math.log(spacing)
    return -(log_likelihood / dimensions + added) / math.log(2)
