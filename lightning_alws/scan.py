"""The linear recurrence e_{t+1} = a_t e_t + b_t over time, with its own adjoint.

    forwards   e_{t+1} = a_t e_t + b_t
    backwards  λ_t = ∂L/∂e_t + a_t λ_{t+1},   ∂L/∂a_t = λ_{t+1} e_t,   ∂L/∂b_t = λ_{t+1},   ∂L/∂e_0 = λ_0

One fused pass over a contiguous row for each step, in both directions. A scan by cumulative products or in log space
needs 0 < a_t, which a forward-Euler step of a fast gate does not give (1 − Δt(α + β) falls below 0), and the graph that
autograd would build of a loop has a node for each step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def linear_scan(coefficients: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    """e_0 … e_T, shape (T + 1, *state), of e_{t+1} = a_t e_t + b_t; differentiable once in all three arguments.

    Args:
        coefficients: a, shape (T, *state), time first and best contiguous.
        inputs: b, of the same shape.
        start: e_0, shape (*state).
    """
    return _LinearScan.apply(coefficients, inputs, start)


class _LinearScan(torch.autograd.Function):
    """The recursion, and its adjoint run backwards in time."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
        """e (T + 1, *state)."""
        states = inputs.new_empty((len(inputs) + 1, *inputs.shape[1:]))
        states[0] = start
        rows = states.unbind(0)
        steps = zip(coefficients.unbind(0), inputs.unbind(0), rows[:-1], rows[1:], strict=True)
        for coefficient, given, state, following in steps:
            torch.addcmul(given, coefficient, state, out=following)
        ctx.save_for_backward(coefficients, states)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of a, b and e_0."""
        coefficients, states = ctx.saved_tensors
        adjoint = torch.empty_like(states)
        adjoint[-1] = grads[0][-1]
        rows = adjoint.unbind(0)
        steps = zip(
            reversed(coefficients.unbind(0)),
            reversed(grads[0].unbind(0)[:-1]),
            reversed(rows[1:]),
            reversed(rows[:-1]),
            strict=True,
        )
        for coefficient, grad, following, state in steps:
            torch.addcmul(grad, coefficient, following, out=state)
        return adjoint[1:] * states[:-1], adjoint[1:], adjoint[0]
