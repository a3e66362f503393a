"""How far the amortised gradient is from an exact one, for models whose log p(x) can be differentiated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_alws.generative import LatentVariableModel
from lightning_alws.kernels import Kernel
from lightning_alws.regression import KernelRidge
from lightning_alws.windows import Windows


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
    seed: int = 1,
    windows: Windows | None = None,
) -> float:
    """RMS of ∇_θ Ĵ(x) − ∇_θ log p(x) over 60 x ~ p_θ, all parameters and repeats, over the RMS exact gradient.

    Where there are windows, Ĵ of a series is the sum over its time steps.
    """
    torch.manual_seed(seed)
    x = model.sleep(60).x
    exact = gradients(log_marginal(x), model)
    queries = x if windows is None else windows.cut(x)
    squares = []
    for _ in range(repeats):
        sleep = (model if windows is None else windows).sleep(count)
        regression = KernelRidge(tuple(queries.shape[1:]), kernel, ridge).requires_grad_(False)
        regression.initialise(sleep.x[:1000])
        fitted = regression.fit(sleep.x)
        assert fitted.failure is None
        values = sleep.joint.expectation(fitted.weights(queries), queries).view(len(x), -1).sum(1)
        squares.append((gradients(values, model) - exact).square().mean())
    return float((torch.stack(squares).mean() / exact.square().mean()).sqrt())
