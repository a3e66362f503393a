"""How far the amortised gradient is from an exact one, for models whose log p(x) can be differentiated."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_alws.generative import LatentVariableModel
from lightning_alws.kernels import Kernel
from lightning_alws.regression import KernelRidge


def gradients(values: Tensor, model: LatentVariableModel) -> Tensor:
    """∇_θ of each of B values, shape (B, number of parameters)."""
    parameters = [*model.parameters()]
    rows = torch.autograd.grad(values, parameters, torch.eye(len(values), dtype=values.dtype), is_grads_batched=True)
    return torch.cat([part.reshape(len(values), -1) for part in rows], dim=1)


def relative_error(
    model: LatentVariableModel,
    log_marginal: Callable[[Tensor], Tensor],
    kernel: Callable[[tuple[int, ...]], Kernel],
    ridge: float,
    count: int,
    repeats: int = 20,
) -> float:
    """RMS of ∇_θ Ĵ(x) − ∇_θ log p(x) over 60 x ~ p_θ, all parameters and repeats, over the RMS exact gradient."""
    torch.manual_seed(1)
    x = model.sleep(60).x
    exact = gradients(log_marginal(x), model)
    squares = []
    for _ in range(repeats):
        sleep = model.sleep(count)
        regression = functools.partial(KernelRidge, kernel=kernel, ridge=ridge)(tuple(x.shape[1:])).requires_grad_(
            False
        )
        regression.initialise(sleep.x[:1000])
        fitted = regression.fit(sleep.x)
        assert fitted.failure is None
        values = sleep.joint.expectation(fitted.weights(x), x)
        squares.append((gradients(values, model) - exact).square().mean())
    return float((torch.stack(squares).mean() / exact.square().mean()).sqrt())
