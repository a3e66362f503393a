"""How much features look like parts of an image: sparse, and in one place."""

from __future__ import annotations

import torch
from torch import Tensor


def hoyer_sparsity(features: Tensor) -> Tensor:
    """(√D − ‖w‖₁/‖w‖₂) / (√D − 1) of each feature (n, D), shape (n,): 1 where one entry is not zero, 0 where all equal.

    Source: Hoyer, "Non-negative matrix factorization with sparseness constraints", JMLR 5, 2004, section 3.1
    (https://jmlr.org/papers/v5/hoyer04a.html).
    """
    root = features.shape[1] ** 0.5
    return (root - features.abs().sum(1) / features.norm(dim=1)) / (root - 1)


def spread(features: Tensor) -> Tensor:
    """Root mean squared distance, in pixels, of the weight of non-negative features (n, H, W) from its centre, (n,)."""
    mass = features / features.sum((1, 2), keepdim=True)
    variance = mass.new_zeros(len(mass))
    for dim, size in ((1, features.shape[1]), (2, features.shape[2])):
        marginal = mass.sum(3 - dim)
        position = torch.arange(size, dtype=mass.dtype, device=mass.device)
        centre = marginal @ position
        variance = variance + marginal @ position.square() - centre.square()
    return variance.clamp_min(0).sqrt()
