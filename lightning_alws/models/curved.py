"""One observed number that bends the posterior of two Gaussian latents into a ring, a banana or two modes.

    z ~ N(0, I₂),   x|z ~ N(w f(z), σ²),   f(z) = ‖z‖  |  z₂ + z₁²  |  z₁ z₂

Like the picture with which the authors' slides of 25 February 2020 show what a Gaussian posterior cannot be; the
functions are ours, the slides give none.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel
from lightning_alws.likelihoods import LOG_2_PI, Gaussian, Likelihood

Curve = Literal["ring", "banana", "product"]


class CurvedGenerator(LatentVariableModel):
    """p(z) = N(0, I₂), p_θ(x|z) = N(w f(z), σ²), x of shape (1,); w is learnt.

    Args:
        curve: f.
        slope: w at first.
        noise_scale: σ.

    Raises:
        UserError: the curve is unknown.
    """

    def __init__(self, curve: Curve, slope: float = 1.0, noise_scale: float = 0.3) -> None:
        super().__init__()
        if curve not in get_args(Curve):
            raise UserError(f"curve is {curve}; give one of {', '.join(get_args(Curve))}.")
        self.curve = curve
        self.slope = nn.Parameter(torch.tensor(float(slope)))
        self.register_buffer("log_scale", torch.tensor(float(noise_scale)).log())

    log_scale: Tensor

    def sample_prior(self, count: int) -> Tensor:
        return torch.randn(count, 2, device=self.slope.device, dtype=self.slope.dtype)

    def log_prior(self, z: Tensor) -> Tensor:
        return -0.5 * (z.square() + LOG_2_PI).sum(-1)

    def likelihood(self, z: Tensor) -> Likelihood:
        first, second = z[:, 0], z[:, 1]
        if self.curve == "ring":
            value = (first.square() + second.square()).sqrt()
        elif self.curve == "banana":
            value = second + first.square()
        else:
            value = first * second
        return Gaussian((self.slope * value)[:, None], self.log_scale)
