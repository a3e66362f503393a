"""Noisy values of random sine functions at random inputs, y = a sin(x − b) + noise, and what can be known of them.

A batch is one packed tensor (B, T, 3): of B functions T points each, with columns input, output, and 1 where the
point is context, 0 where its output is to be predicted. Source: the neural process of kevin-w-li/al-ws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.loader import Convert, DeviceDataModule, unchanged
from lightning_alws.errors import UserError
from lightning_alws.noise import generator

AMPLITUDE = (-0.5, 1.0)  # a is uniform on this interval
SHIFT = (-0.5, 0.5)  # and b on this one
GRID_POINTS = 100  # inputs on [−π, π] at which each function is known


class SineFunctions(DeviceDataModule):
    """Functions y = a sin(x − b) + noise, a ~ U(−0.5, 1), b ~ U(−0.5, 0.5), on 100 inputs between −π and π.

    A training function is seen at other random points each time; those of validation and test are drawn once.

    Args:
        batch_size: training functions per step and process.
        eval_batch_size: validation, test or prediction functions per step and process.
        context_points: points of each function whose outputs are given.
        target_points: further points, whose outputs are held out from the context.
        training_functions, validation_functions, test_functions: how many there are of each.
        noise: standard deviation of the outputs about the function.
        seed: of the functions, their noise, the points and the order.

    Raises:
        UserError: a number makes no sense.
    """

    def __init__(
        self,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        context_points: int = 4,
        target_points: int = 4,
        training_functions: int = 10_000,
        validation_functions: int = 200,
        test_functions: int = 1_000,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.save_hyperparameters(logger=False)
        for name, value, least in (
            ("context_points", context_points, 1),
            ("target_points", target_points, 1),
            ("training_functions", training_functions, 1),
            ("validation_functions", validation_functions, 0),
            ("test_functions", test_functions, 0),
        ):
            if value < least:
                raise UserError(f"data.{name} is {value}; give at least {least}.")
        if context_points + target_points > GRID_POINTS:
            raise UserError(
                f"data.context_points is {context_points} and data.target_points {target_points}, but a function has "
                f"{GRID_POINTS} points; lower them."
            )
        if not noise > 0:
            raise UserError(f"data.noise is {noise}; give a positive number, such as 0.1.")
        self.context_points, self.target_points, self.noise = context_points, target_points, noise
        self.counts = {"train": training_functions, "val": validation_functions, "test": test_functions}

    @property
    def event_shape(self) -> tuple[int]:
        """Shape of one observation: the outputs at all points, context and targets."""
        return (self.context_points + self.target_points,)

    def read(self) -> dict[str, Tensor]:
        """Training functions whole, (n, 100, 2); points (n, T, 3) of the others."""
        splits = {}
        for split in self.counts:
            x, y = input_grid(), sine(self.parameters(split), input_grid())
            y += self.noise * torch.randn(y.shape, generator=generator(self.seed, "sine noise", split))
            functions = torch.stack([x.expand_as(y), y], dim=-1)
            splits[split] = functions if split == "train" else self._points(functions, generator(self.seed, split))
        return splits

    def truth(self, split: str, x: Tensor) -> Tensor:
        """The functions of a split, without noise, at inputs x (m,), shape (n, m): what no model is shown."""
        return sine(self.parameters(split).to(x), x)

    def parameters(self, split: str) -> Tensor:
        """Amplitude a and shift b of the functions of a split, (n, 2)."""
        low, high = torch.tensor([AMPLITUDE, SHIFT]).T
        uniform = torch.rand(self.counts[split], 2, generator=generator(self.seed, "sine functions", split))
        return low + (high - low) * uniform

    def converter(self, split: str) -> Convert:
        """Random points of training functions."""
        if split != "train":
            return unchanged
        return lambda rows, seed: self._points(rows, torch.Generator().manual_seed(seed))

    def _points(self, functions: Tensor, random: torch.Generator) -> Tensor:
        """T different points of each function (n, 100, 2), the first of them context, (n, T, 3)."""
        order = torch.rand(functions.shape[:2], generator=random).argsort(1)[:, : self.event_shape[0]]
        chosen = functions.gather(1, order.to(functions.device)[..., None].expand(-1, -1, 2))
        is_context = torch.arange(self.event_shape[0], device=functions.device) < self.context_points
        return torch.cat([chosen, is_context.to(chosen.dtype)[:, None].expand(len(chosen), -1, 1)], dim=-1)

    def oracle(self, points: Tensor) -> SinePosterior:
        """What is known of functions from their context and the law they were drawn from; points (B, T, 3)."""
        return SinePosterior.of(points, self.noise)


@dataclass(frozen=True)
class SinePosterior:
    """p(a, b | context) of B functions on a quadrature grid of M nodes, in float64: exact but for the quadrature.

    Attributes:
        nodes: a and b, (M, 2).
        log_weights: log posterior mass, (B, M), summing to one.
        noise: standard deviation of the outputs about the function.
    """

    nodes: Tensor
    log_weights: Tensor
    noise: float

    @classmethod
    def of(cls, points: Tensor, noise: float, order: int = 64) -> SinePosterior:
        """Condition on the context among points (B, T, 3), by Gauss-Legendre quadrature of ``order``² nodes."""
        axis, mass = (torch.from_numpy(part).to(points.device) for part in np.polynomial.legendre.leggauss(order))
        a, b = (low + (high - low) * (axis + 1) / 2 for low, high in (AMPLITUDE, SHIFT))
        nodes = torch.cartesian_prod(a, b)
        log_prior = torch.log(mass[:, None] * mass / 4).flatten()  # mass sums to 2
        posterior = cls(nodes, log_prior.expand(len(points), -1), noise)
        log_joint = log_prior + posterior._log_densities(points, points[..., 2])
        return cls(nodes, log_joint.log_softmax(-1), noise)

    def log_predictive(self, points: Tensor) -> Tensor:
        """log p(y_targets | context), jointly over the held-out targets among points (B, T, 3), shape (B,)."""
        return torch.logsumexp(self.log_weights + self._log_densities(points, 1 - points[..., 2]), dim=-1)

    def sample(self, count: int, x: Tensor) -> Tensor:
        """Functions drawn from each posterior, at inputs x (m,), shape (B, count, m)."""
        drawn = self.nodes[torch.multinomial(self.log_weights.exp(), count, replacement=True)]
        return sine(drawn.flatten(0, 1).to(x), x).unflatten(0, drawn.shape[:2])

    def _log_densities(self, points: Tensor, chosen: Tensor) -> Tensor:
        """Σ over the chosen points (B, T) of log N(y; a sin(x − b), noise²) at each node, shape (B, M)."""
        points, chosen = points.double(), chosen.double()
        total = points.new_zeros(len(points), len(self.nodes))
        for t in range(points.shape[1]):  # point by point: all at once would be B × T × M numbers
            residual = (points[:, t, 1:2] - sine(self.nodes, points[:, t, 0]).T) / self.noise
            total += chosen[:, t, None] * (-0.5 * residual.square() - math.log(self.noise * math.sqrt(2 * math.pi)))
        return total


def input_grid() -> Tensor:
    """The 100 inputs at which functions are known."""
    return torch.linspace(-math.pi, math.pi, GRID_POINTS)


def sine(parameters: Tensor, x: Tensor) -> Tensor:
    """a sin(x − b) for parameters (n, 2) at inputs (m,), shape (n, m)."""
    amplitude, shift = parameters[:, :1], parameters[:, 1:]
    return amplitude * torch.sin(x - shift)
