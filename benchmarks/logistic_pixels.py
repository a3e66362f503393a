"""Gradient error of amortised learning with discretised logistic pixels: every pair, or the direct form, at fixed θ.

    python benchmarks/logistic_pixels.py [PIXELS ...]

One latent, over which a grid gives log p(x) and its gradient exactly; 50 images from a decoder near by. The table gives
the root mean square over five repeats of ‖ĝ − g‖ / ‖g‖, g the gradient of the mean log p over these images.
"""

from __future__ import annotations

import functools
import sys

import torch
from torch import nn

from lightning_alws.kernels import MedianKernel
from lightning_alws.likelihoods import DiscretisedLogistic
from lightning_alws.regression import KernelRidge

IMAGES, REPEATS, RIDGES = 50, 5, (1e-3, 1e-2, 1e-1)


def decoder(pixels: int) -> nn.Sequential:
    """Of one latent, with outputs of order one."""
    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, pixels)).double()
    for parameter in network.parameters():
        parameter.data *= 1.5
    return network


def main(pixels: int) -> None:
    """Print the table for images of so many pixels."""
    torch.manual_seed(0)
    network = decoder(pixels)
    log_scale = nn.Parameter(torch.tensor(-1.5).double())
    torch.manual_seed(1)
    other = decoder(pixels)
    for near, own in zip(other.parameters(), network.parameters(), strict=True):
        near.data = own.data + 0.3 * torch.randn_like(own)
    with torch.no_grad():
        x = DiscretisedLogistic(other(torch.randn(IMAGES, 1).double()), log_scale - 0.2).sample()

    parameters = [*network.parameters(), log_scale]
    grid = torch.linspace(-6, 6, 801).double()[:, None]
    law = DiscretisedLogistic(network(grid), log_scale)
    log_prior = torch.log_softmax(-0.5 * grid[:, 0].square(), 0)
    values = torch.stack([law.log_prob(one.expand(len(grid), pixels)) for one in x], 1)
    mean = (values + log_prior[:, None]).logsumexp(0).mean()
    exact = torch.cat([part.flatten() for part in torch.autograd.grad(mean, parameters)])
    print(f"{pixels} pixels: relative error of the gradient, direct / pairs")
    print("    N  " + "".join(f"{f'ridge {ridge}':>18}" for ridge in RIDGES))
    for count in (500, 1000, 2000):
        columns = []
        for ridge in RIDGES:
            squared: dict[str, list[float]] = {"direct": [], "pairs": []}
            for repeat in range(REPEATS):
                torch.manual_seed(100 + repeat)
                law = DiscretisedLogistic(network(torch.randn(count, 1).double()), log_scale)
                sleep = law.sample()
                kernel = functools.partial(MedianKernel, multiple=0.5)
                regression = KernelRidge((pixels,), kernel=kernel, ridge=ridge).double()
                regression.initialise(sleep)
                weights = regression.fit(sleep).weights(x).detach()
                total = [(weights.T @ law.log_prob(sleep)).mean(), law.expectation(weights, x).mean()]
                for form, value in zip(squared, total, strict=True):
                    found = torch.autograd.grad(value, parameters, retain_graph=True)
                    error = torch.cat([part.flatten() for part in found]) - exact
                    squared[form].append(float((error.norm() / exact.norm()).square()))
            columns.append(" / ".join(f"{(sum(parts) / REPEATS) ** 0.5:.2f}" for parts in squared.values()))
        print(f"{count:5}  " + "".join(f"{column:>18}" for column in columns), flush=True)


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["4", "16"]:
        main(int(argument))
