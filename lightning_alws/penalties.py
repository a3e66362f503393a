"""Log priors on a model's parameters: −log p(θ), to be divided by the number of data and added to the loss.

Each names a tensor of the model by its dotted attribute, a parameter or a property computed from some
(``prior.covariances``), and is a density over that tensor's own entries: no Jacobian of how the model parametrises it
is added. Terms that do not depend on the tensor's values are left out throughout.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError


class Penalty(ABC):
    """−log p(v) of one tensor v of a model, up to a constant.

    Args:
        parameter: dotted attribute of v on the model, such as ``likelihood_scale`` or ``prior.log_probabilities``.

    Raises:
        UserError: when called with a model that has no such tensor, or where the density does not admit its values.
    """

    def __init__(self, parameter: str) -> None:
        self.parameter = parameter

    def __call__(self, model: nn.Module) -> Tensor:
        """The penalty, a scalar, differentiable in the model's parameters."""
        return self.negative_log_density(resolve(model, self.parameter))

    @abstractmethod
    def negative_log_density(self, value: Tensor) -> Tensor:
        """−log p(v) for a tensor v, a scalar; its constant is left out."""

    def strength(self, step: int) -> float:
        """By what the penalty is multiplied in training step ``step`` (0 for the first); 1 as a rule."""
        return 1.0

    def _positive(self, name: str, value: float) -> float:
        if not 0 < value < math.inf:
            raise UserError(
                f"{type(self).__name__}.{name} is {value}, for {self.parameter}; give a positive, finite number."
            )
        return value

    def _check_values(self, value: Tensor, admitted: Tensor, expected: str) -> None:
        # NaN passes: a diverged step is found and skipped as a whole, with its own message.
        if not (admitted | value.isnan()).all():
            wrong = value[~(admitted | value.isnan())][0].item()
            raise UserError(
                f"{type(self).__name__}.parameter is {self.parameter}, which holds {wrong:.6g} but must hold "
                f"{expected} only; name another tensor, or use another penalty."
            )


class NormalPenalty(Penalty):
    """v_i ~ N(mean, scale²): Σ_i (v_i − mean)²/(2 scale²); log scale + ½ log 2π for each entry left out.

    Args:
        parameter: v, any shape.
        scale: standard deviation.
        mean: of every entry.
    """

    def __init__(self, parameter: str, scale: float, mean: float = 0.0) -> None:
        super().__init__(parameter)
        self.mean, self.scale = mean, self._positive("scale", scale)

    def negative_log_density(self, value: Tensor) -> Tensor:
        return 0.5 * ((value - self.mean) / self.scale).square().sum()


class LogNormalPenalty(Penalty):
    """log v_i ~ N(location, scale²) as a density in log v: Σ_i (log v_i − location)²/(2 scale²).

    Being one in log v, it has no term log v_i, which the density of the log-normal distribution in v has.

    Args:
        parameter: v > 0, any shape.
        location: of log v.
        scale: standard deviation of log v.
    """

    def __init__(self, parameter: str, location: float, scale: float) -> None:
        super().__init__(parameter)
        self.location, self.scale = location, self._positive("scale", scale)

    def negative_log_density(self, value: Tensor) -> Tensor:
        self._check_values(value, value > 0, "positive numbers")
        return 0.5 * ((value.log() - self.location) / self.scale).square().sum()


class GammaPenalty(Penalty):
    """v_i + offset ~ Gamma(shape, rate): Σ_i [rate (v_i + offset) − (shape − 1) log(v_i + offset)].

    Source: the matrix factorisation of kevin-w-li/al-ws (shape 0.9, rate 0.3). For a shape below 1 the density is
    unbounded at 0, where the offset bounds it.

    Args:
        parameter: v, any shape, with v + offset > 0.
        shape: also known as α.
        rate: also known as β, 1/scale.
        offset: added to v.
    """

    def __init__(self, parameter: str, shape: float, rate: float, offset: float = 1e-15) -> None:
        super().__init__(parameter)
        self.shape, self.rate = self._positive("shape", shape), self._positive("rate", rate)
        self.offset = offset

    def negative_log_density(self, value: Tensor) -> Tensor:
        shifted = value + self.offset
        self._check_values(value, shifted > 0, f"numbers greater than {-self.offset:g}")
        return (self.rate * shifted - (self.shape - 1) * shifted.log()).sum()


class DirichletPenalty(Penalty):
    """π ~ Dirichlet(c, …, c): −(c − 1) Σ_k log π_k, over the last dimension and summed over the others.

    For c ≤ 0 it is improper, no density at all: it rewards probabilities that go to 0, without bound. Source: the
    pinwheel of kevin-w-li/al-ws, with c = −9, where it empties the components that the data do not need.

    Args:
        parameter: logits or log-probabilities, shape (..., K); normalised here, which changes no log-probabilities.
        concentration: c, any number.
        logarithmic: set it to false where the parameter holds the probabilities themselves.
    """

    def __init__(self, parameter: str, concentration: float, logarithmic: bool = True) -> None:
        super().__init__(parameter)
        if not math.isfinite(concentration):
            raise UserError(
                f"DirichletPenalty.concentration is {concentration}, for {parameter}; give a finite number."
            )
        self.concentration, self.logarithmic = concentration, logarithmic

    def negative_log_density(self, value: Tensor) -> Tensor:
        if not self.logarithmic:
            self._check_values(value, value > 0, "positive probabilities (logarithmic is false)")
        logits = value if self.logarithmic else value.log()
        return -(self.concentration - 1) * logits.log_softmax(-1).sum()


class InverseWishartPenalty(Penalty):
    """Σ_k ~ W⁻¹(Ψ, ν) with Ψ = scale · I: Σ_k [½(ν + D + 1) log det Σ_k + ½ tr(Ψ Σ_k⁻¹)].

    For ν ≤ D − 1 it is improper. Source: the pinwheel of kevin-w-li/al-ws, whose 2.5 log det Σ + 0.01 tr Σ⁻¹ for D = 2
    is ν = 2, Ψ = 0.02 I.

    Args:
        parameter: Σ, covariance matrices (..., D, D).
        degrees: ν, any number.
        scale: of Ψ.
    """

    def __init__(self, parameter: str, degrees: float, scale: float) -> None:
        super().__init__(parameter)
        self.degrees, self.scale = degrees, self._positive("scale", scale)

    def negative_log_density(self, value: Tensor) -> Tensor:
        """−log p of covariance matrices (…, D, D), up to a constant; UserError if that is not what they are."""
        if value.dim() < 2 or value.shape[-1] != value.shape[-2]:
            raise UserError(
                f"InverseWishartPenalty.parameter is {self.parameter} of shape {tuple(value.shape)}; name covariance "
                "matrices, of shape (..., D, D)."
            )
        # In double precision: determinants of nearly singular matrices have few digits left in single.
        factor, failed = torch.linalg.cholesky_ex(value.double())
        finite = value.detach().isfinite().all()
        if finite and failed.any():
            raise UserError(
                f"InverseWishartPenalty.parameter is {self.parameter}, which holds a matrix that is not positive "
                "definite; name covariance matrices, or give InverseWishartPenalty.scale a larger value."
            )
        log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        eye = torch.eye(value.shape[-1], dtype=factor.dtype, device=factor.device)
        trace_of_inverse = (
            torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).square().sum((-2, -1))
        )
        penalty = (self.degrees + value.shape[-1] + 1) * log_volume + 0.5 * self.scale * trace_of_inverse
        return penalty.sum().to(value.dtype) if finite else value.sum() * math.nan


class GradualPenalty(Penalty):
    """Another penalty, set in by and by: not at all in the first ``after`` steps, then in proportion, then in full.

    For penalties that leave no way back, such as a Dirichlet one that empties components: those that a model needs
    are not known before it has come near the data.

    Args:
        penalty: the other one.
        after: training steps without it.
        steps: in which its strength then rises from 0 to 1, linearly; 0 for at once.

    Raises:
        UserError: a number of steps is negative.
    """

    def __init__(self, penalty: Penalty, after: int = 0, steps: int = 0) -> None:
        super().__init__(penalty.parameter)
        for name, value in (("after", after), ("steps", steps)):
            if value < 0:
                raise UserError(f"GradualPenalty.{name} is {value}, for {self.parameter}; give 0 or more steps.")
        self.penalty, self.after, self.steps = penalty, after, steps

    def negative_log_density(self, value: Tensor) -> Tensor:
        """The other penalty's, in full: the strength is up to the training step."""
        return self.penalty.negative_log_density(value)

    def strength(self, step: int) -> float:
        # Of the step's number alone, so that a resumed run goes on as it was.
        if step < self.after:
            return 0.0
        return self.penalty.strength(step) * min(1.0, (step - self.after) / self.steps if self.steps else 1.0)


def resolve(model: nn.Module, name: str) -> Tensor:
    """The tensor at a dotted attribute of a model: a parameter, a buffer, or a property that computes one.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    value: object = model
    for part in name.split("."):
        value = getattr(value, part, None)
    if not isinstance(value, Tensor):
        raise UserError(
            f"a penalty's parameter is '{name}', but {type(model).__name__} has no such tensor; use one of "
            f"{', '.join(tensor_names(model))}."
        )
    return value


def tensor_names(model: nn.Module) -> list[str]:
    """Names of a model's parameters, and of the properties that its modules' own classes define."""
    names = [name for name, _ in model.named_parameters()]
    for prefix, module in model.named_modules():
        for base in type(module).__mro__:
            if base.__module__.split(".")[0] in ("torch", "pytorch_lightning", "lightning"):
                continue
            names += [
                f"{prefix}.{name}".lstrip(".")
                for name, member in vars(base).items()
                if isinstance(member, property) and not name.startswith("_")
            ]
    return sorted(set(names))
