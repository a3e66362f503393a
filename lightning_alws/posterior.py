"""Posterior expectations E[f(z)|x] from the regression's weights, for any f and without a posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_alws.generative import Sleep, map_latents
from lightning_alws.precision import full_precision


@dataclass(frozen=True)
class AmortisedPosterior:
    """E[f(z)|x_b] ≈ Σ_n W_nb f(z_n) for any f, without a posterior.

    Attributes:
        sleep: the N samples.
        weights: W (N, B); signed, and summing to about one.
    """

    sleep: Sleep
    weights: Tensor

    def expectation(self, values: Tensor) -> Tensor:
        """E[f(z)|x_b] for values f(z_n) of shape (N, ...), shape (B, ...)."""
        with full_precision(values.device):
            return torch.einsum("nb,n...->b...", self.weights, values)

    @property
    def negative_mass(self) -> Tensor:
        """Σ_n max(−W_nb, 0), shape (B,): how far the weights are from a probability distribution."""
        return (-self.weights).clamp_min(0).sum(0)

    def to(self, device: torch.device, non_blocking: bool = False) -> AmortisedPosterior:
        """The same on another device; Lightning calls it to keep predictions."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        sleep = Sleep(map_latents(self.sleep.z, move), move(self.sleep.x), self.sleep.joint.map(move, move))
        return AmortisedPosterior(sleep, move(self.weights))

    def projected(self) -> AmortisedPosterior:
        """The same with each column of W replaced by the nearest probability vector (Euclidean projection)."""
        return AmortisedPosterior(self.sleep, project_to_simplex(self.weights))


def project_to_simplex(weights: Tensor) -> Tensor:
    """The nearest point, in Euclidean distance, with non-negative entries that sum to one, for each column of (N, B).

    Source: Held, Wolfe, Crowder, "Validation of subgradient optimization", Mathematical Programming 6, 1974.
    """
    descending = weights.sort(dim=0, descending=True).values
    count = torch.arange(1, len(weights) + 1, device=weights.device, dtype=weights.dtype)[:, None]
    shifts = (descending.cumsum(0) - 1) / count
    support = (descending > shifts).sum(0, keepdim=True)
    return (weights - shifts.gather(0, support - 1)).clamp_min(0)
