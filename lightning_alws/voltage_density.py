"""The density of a voltage path of the stochastic Hodgkin-Huxley membrane, with gradients of its own.

    log p(V_1 … V_T) = Σ_t log N(V_{t+1}; E[V_{t+1} | V_t, m_t, n_t, h_t], s_V²)

The gates are recomputed from the path, as linear recurrences whose coefficients carry the gradient of the threshold
(:mod:`lightning_alws.scan`); equations and units are those of :mod:`lightning_alws.hodgkin_huxley`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_alws.hodgkin_huxley import ORIGINS, PREFACTORS, SLOPES, Constants, exp_ratio, exp_ratio_slope
from lightning_alws.scan import linear_scan

BLOCK = 32  # time steps whose intermediate results stay in the processor's cache


class _Recurrence(torch.autograd.Function):
    """1 − Δt(α + β) and Δt α of the three gates, each (T, 3, N), from V_t and voltages (T, N).

    Voltages that were drawn have no gradient: V_t's is one number, into which the slopes of the six rates are summed as
    they are computed.
    """

    @staticmethod
    def forward(ctx: Any, threshold: Tensor, voltage: Tensor, time_step: float) -> tuple[Tensor, Tensor]:
        origins, slopes, prefactors = voltage.new_tensor([ORIGINS, SLOPES, PREFACTORS])[:, :, None]
        x = torch.addcmul(-slopes * (origins + threshold), slopes, voltage[:, None])
        rate = torch.empty_like(x)
        rate[:, :3], denominator = exp_ratio(x[:, :3])
        torch.exp(x[:, 3:5], out=rate[:, 3:5])
        torch.sigmoid(x[:, 5], out=rate[:, 5])
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, rate, denominator)
        ctx.time_step = time_step
        scaled = rate * (time_step * prefactors)
        opening, closing = scaled[:, 0::2], scaled[:, 1::2]
        return 1 - opening - closing, opening.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, rate, denominator = ctx.saved_tensors
        _, slopes, prefactors = x.new_tensor([ORIGINS, SLOPES, PREFACTORS])[:, :, None]
        sloping = torch.empty_like(x)
        sloping[:, :3] = exp_ratio_slope(x[:, :3], rate[:, :3], denominator)
        sloping[:, 3:5] = rate[:, 3:5]
        sloping[:, 5] = rate[:, 5] * (1 - rate[:, 5])
        decay, opening = grads
        sloping[:, 0::2] *= opening - decay
        sloping[:, 1::2] *= -decay
        steepness = ctx.time_step * (slopes * prefactors)[:, 0]
        by_threshold = -(sloping.sum((0, 2)) @ steepness)
        return by_threshold, steepness @ sloping if ctx.needs_input_grad[1] else None, None


def squared_residuals(
    threshold: Tensor,
    scaled: Tensor,
    gates: Tensor,
    voltage: Tensor,
    following: Tensor,
    current: Tensor,
    time_step: float,
) -> tuple[Tensor, Tensor]:
    """Σ_t (V_{t+1} − E[V_{t+1} | V_t])² of each path, shape (N,), and the gates after the last step, (3, N).

    Args:
        threshold: V_t, a scalar.
        scaled: as in :class:`Constants`.
        gates: before the first step, shape (3, N).
        voltage: V_t, shape (T, N).
        following: V_{t+1}, shape (T, N).
        current: I_t, shape (T,).
        time_step: Δt, ms.
    """
    decay, opening = _Recurrence.apply(threshold, voltage, time_step)
    states = linear_scan(decay, opening, gates)
    return _SquaredResiduals.apply(scaled, states, voltage, following, current), states[-1]


class _SquaredResiduals(torch.autograd.Function):
    """Σ_t r_t², r_t = V_{t+1} − V_t + k(t) V_t − d(t), from the constants k and d, the gates and V_t.

    k = k_l + k_Na m³h + k_K n⁴, d likewise of the k E, with k_I I_t. Autograd's own graph of it takes twice as long.
    """

    @staticmethod
    def forward(
        ctx: Any, scaled: Tensor, states: Tensor, voltage: Tensor, following: Tensor, current: Tensor
    ) -> Tensor:
        m, n, h = states[:-1].unbind(1)
        leak, leak_drive, sodium, sodium_drive, potassium, potassium_drive, scale = scaled.tolist()
        cube, square = (m * m).mul_(m), n * n
        through_sodium, through_potassium = cube * h, square * square
        conductance = (sodium * through_sodium).add_(through_potassium, alpha=potassium).add_(leak)
        residual = (following - voltage).addcmul_(conductance, voltage)
        residual.sub_(through_sodium, alpha=sodium_drive).sub_(through_potassium, alpha=potassium_drive)
        residual.sub_((scale * current + leak_drive)[:, None])
        open_parts = (cube, square, through_sodium, through_potassium, conductance)
        ctx.save_for_backward(scaled, states, voltage, current, residual, *open_parts)
        return residual.square().sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled, states, voltage, current, residual, *open_parts = ctx.saved_tensors
        cube, square, through_sodium, through_potassium, conductance = open_parts
        m, n, h = states[:-1].unbind(1)
        _, _, sodium, sodium_drive, potassium, potassium_drive, _ = scaled.tolist()
        pulled = residual * (2 * grads[0])
        weighted = pulled * voltage
        flat, flat_weighted = pulled.flatten(), weighted.flatten()
        by_scaled = [flat_weighted.sum(), -flat.sum()]
        for through in (through_sodium.flatten(), through_potassium.flatten()):
            by_scaled += [flat_weighted @ through, -(flat @ through)]
        by_scaled.append(-(pulled.sum(1) @ current))

        by_sodium = (weighted * sodium).sub_(pulled, alpha=sodium_drive)
        by_states = torch.empty_like(states)
        by_states[-1] = 0
        torch.mul(by_sodium, cube, out=by_states[:-1, 2])
        torch.mul(by_sodium.mul_(h).mul_(m), m, out=by_states[:-1, 0]).mul_(3)
        by_potassium = weighted.mul_(4 * potassium).sub_(pulled, alpha=4 * potassium_drive)
        torch.mul(by_potassium.mul_(square), n, out=by_states[:-1, 1])
        by_voltage = pulled.mul_(conductance - 1) if ctx.needs_input_grad[2] else None
        return torch.stack(by_scaled), by_states, by_voltage, None, None


class _InBlocks(torch.autograd.Function):
    """:func:`squared_residuals` of the sums alone, a few time steps at a time, recomputed in the backward pass.

    A path of N · T voltages goes through some fifty element-wise operations. Whole, each would pass through main
    memory and be kept there; a block of a few steps stays in the cache, and only the gates between blocks are kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        threshold: Tensor,
        scaled: Tensor,
        gates: Tensor,
        voltage: Tensor,
        following: Tensor,
        current: Tensor,
        time_step: float,
    ) -> Tensor:
        ctx.time_step = time_step
        total = torch.zeros_like(voltage[0])
        starts = []
        blocks = zip(voltage.split(BLOCK), following.split(BLOCK), current.split(BLOCK), strict=True)
        for block in blocks:
            starts.append(gates)
            squares, gates = squared_residuals(threshold, scaled, gates, *block, time_step)
            total += squares
        ctx.save_for_backward(threshold, scaled, voltage, following, current, *starts)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        threshold, scaled, voltage, following, current, *starts = ctx.saved_tensors
        blocks = [*zip(voltage.split(BLOCK), following.split(BLOCK), current.split(BLOCK), starts, strict=True)]
        adjoint = torch.zeros_like(starts[0])
        totals = [torch.zeros_like(threshold), torch.zeros_like(scaled)]
        for before, after, given, gates in reversed(blocks):
            with torch.enable_grad():
                leaves = tuple(part.detach().requires_grad_() for part in (threshold, scaled, gates))
                results = squared_residuals(leaves[0], leaves[1], leaves[2], before, after, given, ctx.time_step)
            *shared, adjoint = torch.autograd.grad(results, leaves, [grads[0], adjoint])
            for total, part in zip(totals, shared, strict=True):
                total += part
        return (*totals, adjoint, None, None, None, None)


def log_density(constants: Constants, voltage: Tensor, gates: Tensor, current: Tensor, path: Tensor) -> Tensor:
    """log p(V_1 … V_T) of given paths, shape (N,), differentiable in the constants, V_0 and the gates at first.

    Args:
        constants: of the membrane.
        voltage: V_0, a scalar.
        gates: m, n, h at first, shape (3,).
        current: I_0 … I_{T−1}, shape (T,).
        path: shape (T, N), best contiguous; gets no gradient.
    """
    shared = (constants.threshold, constants.scaled)
    step = constants.time_step
    # The first step by itself: it is the one whose voltage has a gradient.
    states, first = gates[:, None].expand(3, path.shape[1]), voltage.expand(1, path.shape[1])
    squares, states = squared_residuals(*shared, states, first, path[:1], current[:1], step)
    if len(path) > 1:
        squares = squares + _InBlocks.apply(*shared, states, path[:-1], path[1:], current[1:], step)
    return -0.5 * squares / constants.noise.square() - len(path) * (constants.noise.log() + 0.5 * math.log(2 * math.pi))
