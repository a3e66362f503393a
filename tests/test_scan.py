"""The linear recurrence against a loop that autograd follows, and its adjoint by finite differences."""

import pytest
import torch
from torch import Tensor

from lightning_alws.scan import linear_scan


def loop(coefficients: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    states = [start]
    for coefficient, given in zip(coefficients, inputs, strict=True):
        states.append(coefficient * states[-1] + given)
    return torch.stack(states)


def arguments(dtype: torch.dtype = torch.float64, steps: int = 7) -> list[Tensor]:
    """Coefficients of either sign and, for one state, exactly 0: neither logarithms nor quotients would do."""
    coefficients = torch.rand(steps, 2, 3, dtype=dtype) * 1.6 - 0.8
    coefficients[-1, 0, 0] = 0
    parts = [coefficients, torch.randn(steps, 2, 3, dtype=dtype), torch.randn(2, 3, dtype=dtype)]
    return [part.requires_grad_() for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [1, 7, 400])
def test_values_and_gradients_are_those_of_a_loop(dtype: torch.dtype, steps: int) -> None:
    given = arguments(dtype, steps)
    ours, reference = linear_scan(*given), loop(*given)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, reference)
    weights = torch.randn_like(ours)
    for ours_grad, reference_grad in zip(
        torch.autograd.grad((ours * weights).sum(), given),
        torch.autograd.grad((reference * weights).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(ours_grad, reference_grad)


def test_gradient_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(linear_scan, tuple(arguments()))


def test_a_transposed_layout_and_a_constant_argument_are_taken() -> None:
    coefficients, inputs, start = arguments()
    turned = coefficients.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    states = linear_scan(turned, inputs.detach(), start.detach())
    torch.testing.assert_close(states, loop(coefficients, inputs, start))
    (gradient,) = torch.autograd.grad(states[-1].sum(), turned)
    torch.testing.assert_close(
        gradient, torch.autograd.grad(loop(coefficients, inputs, start)[-1].sum(), coefficients)[0]
    )
