"""log p_θ(x) of one voltage trace by the extended Kalman filter, for many Hodgkin-Huxley membranes at once.

The noise of one time step is small beside the scale on which the rates bend, so that the filter's Gaussian
approximation is good; it is a check on what was learnt, and shows how well one trace fixes each constant. Nothing is
trained by it. Source: Särkkä, "Bayesian Filtering and Smoothing", 2013, algorithm 5.4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_alws.hodgkin_huxley import NAMES, ORIGINS, PREFACTORS, SLOPES, exp_ratio, exp_ratio_slope, signs

STEP, WIDE_STEP = 1e-4, 1e-3  # of the differences for slopes, and for slopes of slopes
RENEWED, HALVINGS = 5, 4
LONGEST = 0.2  # in any entry of θ, of one Newton step


def rates_and_slopes(relative: Tensor) -> tuple[Tensor, Tensor]:
    """α_m, β_m, α_n, β_n, α_h, β_h in 1/ms and their derivatives in V, each (6, P), from V − V_t, shape (P,)."""
    origins, slopes, prefactors = relative.new_tensor([ORIGINS, SLOPES, PREFACTORS])[:, :, None]
    x = (relative - origins) * slopes
    ratio, denominator = exp_ratio(x[:3])
    exponential, sigmoid = x[3:5].exp(), x[5:].sigmoid()
    shape = torch.cat([ratio, exponential, sigmoid])
    sloping = torch.cat([exp_ratio_slope(x[:3], ratio, denominator), exponential, sigmoid * (1 - sigmoid)])
    return prefactors * shape, prefactors * slopes * sloping


@torch.no_grad()
def log_likelihood(constants: Tensor, start: Tensor, current: Tensor, x: Tensor, time_step: float) -> Tensor:
    """log p(x_1 … x_T) for P membranes, shape (P,), in the dtype of the constants; float64 is advised.

    Args:
        constants: (P, 10) in the order of :data:`~lightning_alws.hodgkin_huxley.NAMES`, with their signs.
        start: V_0, m, n, h at first, shape (P, 4); known exactly.
        current: I_0 … I_{T−1}, shape (T,).
        x: the trace, shape (T,).
        time_step: ms.
    """
    values = dict(zip(NAMES, constants.T, strict=True))
    scale = time_step / values["capacitance"]
    leak, sodium, potassium = (scale * values[f"{name}_conductance"] for name in ("leak", "sodium", "potassium"))
    to_leak, to_sodium, to_potassium = (values[f"{name}_reversal"] for name in ("leak", "sodium", "potassium"))
    system, observed = values["voltage_noise"].square(), values["observation_noise"].square()
    mean = start.to(constants)
    covariance = constants.new_zeros(len(constants), 4, 4)
    moved = torch.eye(4).to(constants).repeat(len(constants), 1, 1)
    total = constants.new_zeros(len(constants))
    for given, seen in zip(current.to(constants), x.to(constants), strict=True):
        voltage, m, n, h = mean.unbind(1)
        rate, slope = rates_and_slopes(voltage - values["threshold"])
        opening, closing = rate[0::2], rate[1::2]
        gates = mean[:, 1:].T
        sodium_open, potassium_open = sodium * m**3 * h, potassium * n**4
        # The transition's mean, and its derivative in the state.
        moved[:, 0, 0] = 1 - leak - sodium_open - potassium_open
        moved[:, 0, 1] = -3 * sodium * m**2 * h * (voltage - to_sodium)
        moved[:, 0, 2] = -4 * potassium * n**3 * (voltage - to_potassium)
        moved[:, 0, 3] = -sodium * m**3 * (voltage - to_sodium)
        moved[:, 1:, 0] = (time_step * (slope[0::2] * (1 - gates) - slope[1::2] * gates)).T
        for gate in range(3):
            moved[:, 1 + gate, 1 + gate] = 1 - time_step * (opening[gate] + closing[gate])
        drive = leak * (to_leak - voltage) + sodium_open * (to_sodium - voltage)
        drive = drive + potassium_open * (to_potassium - voltage) + scale * given
        gates = gates + time_step * (opening * (1 - gates) - closing * gates)
        mean = torch.cat([(voltage + drive)[:, None], gates.T], dim=1)
        covariance = moved @ covariance @ moved.mT
        covariance[:, 0, 0] += system
        # The observation of the voltage.
        variance = covariance[:, 0, 0] + observed
        error = seen - mean[:, 0]
        gain = covariance[:, :, 0] / variance[:, None]
        mean = mean + gain * error[:, None]
        covariance = covariance - gain[:, :, None] * covariance[:, :1, :]
        total -= 0.5 * (error.square() / variance + variance.log() + math.log(2 * math.pi))
    return total


class TraceLikelihood:
    """log p(x) of one trace as a function of θ = (logarithms of the ten constants' sizes, V_0 in 100 mV).

    The gates at first are given: their effect is gone after some milliseconds, and one trace says nothing of them.

    Args:
        current: I_0 … I_{T−1}, shape (T,).
        x: the trace, shape (T,).
        time_step: ms.
        gates: m, n, h at first.
    """

    def __init__(self, current: Tensor, x: Tensor, time_step: float, gates: Tensor) -> None:
        self.current, self.x, self.time_step = current.double().cpu(), x.double().cpu(), time_step
        self.gates = gates.detach().double().cpu()
        self.signs = torch.tensor([*signs()], dtype=torch.float64)

    def __call__(self, theta: Tensor) -> Tensor:
        """log p(x), shape (P,), for θ (P, 11)."""
        start = torch.cat([100 * theta[:, 10:], self.gates.expand(len(theta), 3)], dim=1)
        return log_likelihood(theta[:, :10].exp() * self.signs, start, self.current, self.x, self.time_step)

    def gradients(self, theta: Tensor) -> Tensor:
        """∇ log p(x), shape (P, 11), by central differences."""
        shifts = STEP * torch.eye(theta.shape[1]).double()
        values = self(torch.cat([theta[:, None] + shifts, theta[:, None] - shifts], dim=1).flatten(0, 1))
        above, below = values.view(len(theta), 2, -1).unbind(1)
        return (above - below) / (2 * STEP)

    def information(self, theta: Tensor) -> Tensor:
        """−∇² log p(x) at θ (11,), made positive definite, shape (11, 11)."""
        shifts = WIDE_STEP * torch.eye(len(theta)).double()
        above, below = self.gradients(theta + shifts), self.gradients(theta - shifts)
        hessian = (above - below) / (2 * WIDE_STEP)
        values, vectors = torch.linalg.eigh(-0.5 * (hessian + hessian.T))
        return vectors * values.abs().clamp_min(1.0) @ vectors.T

    def climb(self, theta: Tensor, fixed: Tensor, steps: int = 20) -> tuple[Tensor, Tensor]:
        """The largest log p(x) near each of P points, (P,), and where, (P, 11), some entries staying as they are.

        Args:
            theta: where to begin, (P, 11).
            fixed: which entries stay, bool (P, 11).
            steps: of Newton's method, halved where they lead down; the information is that of the first point, anew
                every few steps.
        """
        values = self(theta)
        for step in range(steps):
            if step % RENEWED == 0:
                metric = self.information(theta[0]).expand(len(theta), -1, -1).clone()
                metric[fixed] = 0
                metric.mT[fixed] = 0
                metric.diagonal(dim1=1, dim2=2)[fixed] = 1
            slopes = self.gradients(theta).masked_fill(fixed, 0.0)
            move = torch.linalg.solve(metric, slopes[:, :, None])[:, :, 0]
            move = move / (move.abs().amax(1, keepdim=True) / LONGEST).clamp_min(1)
            for _ in range(HALVINGS):
                tried = self(theta + move)
                better = tried > values
                theta = torch.where(better[:, None], theta + move, theta)
                values = torch.where(better, tried, values)
                if better.all():
                    break
                move = torch.where(better[:, None], 0.0, move / 2)
        return values, theta

    def point(self, values: dict[str, float], voltage: float) -> Tensor:
        """θ (11,) of constants by name and V_0 in mV."""
        return torch.tensor([*(math.log(abs(values[name])) for name in NAMES), voltage / 100], dtype=torch.float64)

    def profile_drops(self, best: Tensor, points: dict[str, list[float]], steps: int = 20) -> dict[str, list[float]]:
        """How far the profile of log p(x) falls below its maximum at given values of each constant, in nats.

        The profile at a value is the largest log p(x) of all θ with it. Below 1.92 a value lies in the 95 % interval.

        Args:
            best: θ of the maximum, (11,).
            points: values of constants, by name.
            steps: of the climbs.
        """
        rows, fixed = [best], [torch.zeros(len(best), dtype=torch.bool)]
        covariance = self.information(best).inverse()
        for name, values in points.items():
            place = NAMES.index(name)
            for value in values:
                # Along the ridge: where the others' maximum would be if log p were quadratic.
                shift = math.log(abs(value)) - float(best[place])
                rows.append(best + shift * covariance[place] / covariance[place, place])
                fixed.append(torch.arange(len(best)) == place)
        tops, _ = self.climb(torch.stack(rows), torch.stack(fixed), steps)
        drops = iter((tops.max() - tops[1:]).tolist())
        return {name: [next(drops) for _ in values] for name, values in points.items()}
