"""The stochastic Hodgkin-Huxley membrane: its constants, its rates, and paths drawn fast.

    V_{t+1} ~ N(V_t + Δt/C [I_t − g_l (V_t − E_l) − g_Na m³h (V_t − E_Na) − g_K n⁴ (V_t − E_K)], s_V²)
    e_{t+1} = e_t + Δt (α_e(V_t) (1 − e_t) − β_e(V_t) e_t)      for each gate e = m, n, h

The voltage alone is random; the density of its path is in :mod:`lightning_alws.voltage_density`. Source: the rates are
those of Pospischil et al., "Minimal Hodgkin-Huxley type models for different classes of cortical and thalamic
neurons", 2008 (after Traub and Miles), the step and the noise those of the published code (kevin-w-li/al-ws).
Units: ms, mV, µA/cm², mS/cm², µF/cm².
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_alws.errors import UserError

GATES = ("m", "n", "h")
NEGATIVE = ("leak_reversal", "potassium_reversal", "threshold")
SERIES_BELOW = 0.03  # |x| where the derivative of x/(eˣ − 1) comes from its series
# α_m, β_m, α_n, β_n, α_h, β_h are prefactor · g(slope · (V − V_t − origin)), g being x/(eˣ − 1) for the first three,
# eˣ for the next two and 1/(1 + e⁻ˣ) for the last.
ORIGINS = (13.0, 40.0, 15.0, 10.0, 17.0, 40.0)
SLOPES = (-1 / 4, 1 / 5, -1 / 5, -1 / 40, -1 / 18, 1 / 5)
PREFACTORS = (0.32 * 4, 0.28 * 5, 0.032 * 5, 0.5, 0.128, 4.0)


@dataclass(frozen=True)
class Membrane:
    """The ten constants of the model.

    Args:
        capacitance: C, µF/cm².
        leak_conductance: g_l, mS/cm².
        leak_reversal: E_l, mV, negative.
        sodium_conductance: g_Na, mS/cm².
        sodium_reversal: E_Na, mV.
        potassium_conductance: g_K, mS/cm².
        potassium_reversal: E_K, mV, negative.
        threshold: V_t, mV, negative; shifts the voltages at which the gates open.
        voltage_noise: s_V, mV, of one time step.
        observation_noise: s_x, mV.
    """

    capacitance: float = 1.0
    leak_conductance: float = 0.1
    leak_reversal: float = -70.42
    sodium_conductance: float = 50.0
    sodium_reversal: float = 50.0
    potassium_conductance: float = 5.0
    potassium_reversal: float = -90.0
    threshold: float = -60.0
    voltage_noise: float = 0.1
    observation_noise: float = 1.0

    def check(self, argument: str) -> None:
        """Raise a UserError for a constant of the wrong sign; ``argument`` is the option they came from."""
        for name, value in vars(self).items():
            sign = -1 if name in NEGATIVE else 1
            if not (0 < sign * value < math.inf):
                raise UserError(
                    f"{argument}.{name} is {value}, but must be {'negative' if sign < 0 else 'positive'} and finite; "
                    "its logarithm is learnt."
                )


NAMES = tuple(field.name for field in dataclasses.fields(Membrane))


def signs(names: tuple[str, ...] = NAMES) -> list[float]:
    """−1 for the constants that are negative, 1 for the others."""
    return [-1.0 if name in NEGATIVE else 1.0 for name in names]


@dataclass(frozen=True)
class State:
    """Where a path begins: a voltage in mV and the share of open gates of each kind, in [0, 1]."""

    voltage: float = -70.0
    m: float = 0.0
    n: float = 0.0
    h: float = 0.8

    def check(self, argument: str) -> None:
        """Raise a UserError for a gate outside [0, 1] or a voltage that is not finite."""
        for name, value in vars(self).items():
            if not (math.isfinite(value) if name == "voltage" else 0 <= value <= 1):
                expected = "a finite number of mV" if name == "voltage" else "a number between 0 and 1"
                raise UserError(f"{argument}.{name} is {value}; give {expected}.")

    @property
    def gates(self) -> list[float]:
        """m, n, h."""
        return [self.m, self.n, self.h]


def exp_ratio(x: Tensor) -> tuple[Tensor, Tensor]:
    """x/(eˣ − 1), 1 at 0, and eˣ − 1, of any shape; the first accurate for every x, and with it :func:`slope_of`."""
    x = x + 1e-30  # vanishes beside every x but 0, where it leaves the limit
    denominator = torch.expm1(x)
    return x / denominator, denominator


def exp_ratio_slope(x: Tensor, ratio: Tensor, denominator: Tensor) -> Tensor:
    """The derivative of x/(eˣ − 1), −½ at 0, from x and what :func:`exp_ratio` returns."""
    direct = (1 - x - ratio) / denominator
    # The closed form loses digits as x nears 0, where a few terms of the series have them all.
    square = x.square()
    series = x * (1 - square / 30 * (1 - square / 28)) / 6 - 0.5
    return torch.where(square < SERIES_BELOW**2, series, direct)


@dataclass(frozen=True)
class Constants:
    """The constants as 0-dimensional tensors of one dtype, as the equations take them.

    Attributes:
        threshold: V_t.
        scaled: k_l, k_l E_l, k_Na, k_Na E_Na, k_K, k_K E_K, k_I with k = Δt g/C and k_I = Δt/C; shape (7,).
        noise: s_V.
        time_step: Δt, ms.
    """

    threshold: Tensor
    scaled: Tensor
    noise: Tensor
    time_step: float

    @classmethod
    def of(cls, values: dict[str, Tensor], time_step: float) -> Constants:
        """From the constants by name, each a 0-dimensional tensor."""
        scale = time_step / values["capacitance"]
        parts = []
        for channel in ("leak", "sodium", "potassium"):
            conductance = scale * values[f"{channel}_conductance"]
            parts += [conductance, conductance * values[f"{channel}_reversal"]]
        return cls(values["threshold"], torch.stack([*parts, scale]), values["voltage_noise"], time_step)

    @classmethod
    def of_membrane(cls, membrane: Membrane, time_step: float, dtype: torch.dtype = torch.float64) -> Constants:
        """From numbers."""
        return cls.of({name: torch.tensor(value, dtype=dtype) for name, value in vars(membrane).items()}, time_step)


class _Euler:
    """One time step of N membranes together: nothing is allocated, and the rates of the gates are computed at once.

    Args:
        constants: of the membrane.
        gates: m, n, h at first, shape (3,).
        like: a row of N numbers, whose dtype and device are those of the computation.
    """

    def __init__(self, constants: Constants, gates: Tensor, like: Tensor) -> None:
        count = len(like)
        leak, self.leak_drive, *_, self.scale = constants.scaled.tolist()
        # Rows: k of sodium and potassium, the same times E.
        self.channels = constants.scaled[2:6].view(2, 2).T.contiguous()
        self.channels_base = like.new_tensor([[leak], [0.0]])
        origins, self.slopes, prefactors = like.new_tensor([ORIGINS, SLOPES, PREFACTORS])[:, :, None]
        self.origins = -self.slopes * (origins + constants.threshold)
        self.prefactors = constants.time_step * prefactors
        self.gates = gates.to(like)[:, None].repeat(1, count)
        self.rate, self.ratio = like.new_empty(2, 6, count)
        self.cubes, self.currents = like.new_empty(2, count), like.new_empty(2, count)
        self.total = like.new_empty(3, count)

    def given(self, current: Tensor) -> Tensor:
        """What current and leak add to V_t in each step, whatever the state, shape (T,)."""
        return self.scale * current + self.leak_drive

    def advance(self, row: Tensor, following: Tensor) -> None:
        """Add to ``following`` (N,) what V_t in ``row`` (N,) and the gates give V_{t+1}; then move the gates."""
        m, n, h = self.gates
        sodium, potassium = self.cubes
        conductance, drive = self.currents
        rate, gates = self.rate, self.gates
        linear, exponential, sigmoid = rate[:3], rate[3:5], rate[5]
        torch.mul(m, m, out=sodium).mul_(m).mul_(h)
        torch.mul(n, n, out=potassium)
        potassium.mul_(potassium)
        torch.addmm(self.channels_base, self.channels, self.cubes, out=self.currents)
        following.add_(drive).add_(row).addcmul_(conductance, row, value=-1)

        torch.addcmul(self.origins, self.slopes, row, out=rate)
        linear.add_(1e-30)
        torch.expm1(linear, out=self.ratio[:3])
        linear.div_(self.ratio[:3])
        exponential.exp_()
        sigmoid.sigmoid_()
        rate.mul_(self.prefactors)
        opening, closing = rate[0::2], rate[1::2]
        torch.add(opening, closing, out=self.total)
        gates.addcmul_(self.total, gates, value=-1).add_(opening)


@torch.no_grad()
def draw_path(constants: Constants, voltage: Tensor, gates: Tensor, current: Tensor, noise: Tensor) -> Tensor:
    """V_1 … V_T of N paths, shape (T, N), without gradient; the noise's memory is used for it.

    Args:
        constants: of the membrane.
        voltage: V_0, a scalar.
        gates: m, n, h at first, shape (3,).
        current: I_0 … I_{T−1}, shape (T,).
        noise: standard normal, shape (T, N), contiguous; overwritten. Zeros give the path without noise.
    """
    euler = _Euler(constants, gates, noise[0])
    drawn = noise.mul_(constants.noise).add_(euler.given(current)[:, None])
    row = voltage.to(noise).expand(noise.shape[1]).clone()
    for following in drawn.unbind(0):
        euler.advance(row, following)
        row = following
    return drawn


@torch.no_grad()
def innovations(
    constants: Constants, voltage: Tensor, gates: Tensor, current: Tensor, x: Tensor, gain: float
) -> Tensor:
    """x_t − V̂_t of N traces, shape (T, N), without gradient: what a membrane that follows each trace did not foresee.

        V̂_{t+1} = the step without noise from V̂_t + gain (x_t − V̂_t) and its gates,   V̂_1 that from V_0

    It is a Kalman filter with one gain for all time, and the gates not corrected. Where the constants are those of
    the traces and the gain the filter's, the innovations are nearly white.

    Args:
        constants: of the membrane; its noise plays no part.
        voltage: V_0, a scalar.
        gates: m, n, h at first, shape (3,).
        current: I_0 … I_{T−1}, shape (T,).
        x: traces, shape (T, N).
        gain: in [0, 1]; 0 follows nothing, 1 begins each step from the observation.
    """
    euler = _Euler(constants, gates, x[0])
    differences = torch.empty_like(x)
    row, following = voltage.to(x).expand(x.shape[1]).clone(), torch.empty_like(x[0])
    for given, seen, difference in zip(euler.given(current).tolist(), x.unbind(0), differences.unbind(0), strict=True):
        following.fill_(given)
        euler.advance(row, following)
        torch.sub(seen, following, out=difference)
        torch.add(following, difference, alpha=gain, out=row)
    return differences
