"""How far an estimate of ∇_θ log p_θ(x) is from the exact gradient, and the amortised estimates to be measured.

For models with few parameters: gradients of many observations at once are taken forwards, one parameter at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.generative import Direct, LatentVariableModel, PlugIn, Sleep
from lightning_alws.regression import KernelRidge

FORMS = ("plug_in", "direct")


class LogJoint(nn.Module):
    """log p_θ(x_b, z) of a model, row by row; a module, so that its parameters can be replaced from outside."""

    def __init__(self, model: LatentVariableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """log p_θ(x_b, z) for z (..., B, D) and x (B, *event), shape (..., B)."""
        rows = z.flatten(0, -2)
        observed = x.expand(*z.shape[:-2], *x.shape).flatten(0, z.ndim - 2)
        return (self.model.likelihood(rows).log_prob(observed) + self.model.log_prior(rows)).view(z.shape[:-1])


class Expectation(nn.Module):
    """Ĵ(x*) of given sleep samples and weights, as a function of the model's parameters.

    Args:
        model: p_θ.
        form: "plug_in" or "direct".
    """

    def __init__(self, model: LatentVariableModel, form: str) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, sleep: Sleep, weights: Tensor, x: Tensor) -> Tensor:
        """Ĵ(x_b) for weights (N, B) and x (B, *event), shape (B,)."""
        assert isinstance(sleep.z, Tensor)  # as a LatentVariableModel's are
        log_prior = self.model.log_prior(sleep.z) if self.model.prior_is_learnt else None
        joint = PlugIn(sleep.x, self.model.likelihood(sleep.z), log_prior)
        return (joint if self.form == "plug_in" else Direct(joint.log_joint)).expectation(weights, x)


@torch.no_grad()
def parameter_gradient(function: nn.Module, *inputs: object) -> Tensor:
    """∇_θ of every value that a module returns, shape (*values, P), by one forward derivative for each of P numbers.

    θ are the parameters that require a gradient, flattened in their order.
    """
    parameters = {name: p.detach() for name, p in function.named_parameters() if p.requires_grad}

    def values(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(function, parameters, inputs)

    columns = []
    for name, parameter in parameters.items():
        for index in range(parameter.numel()):
            direction = {other: torch.zeros_like(p) for other, p in parameters.items()}
            direction[name].view(-1)[index] = 1
            columns.append(torch.func.jvp(values, (parameters,), (direction,))[1])
    return torch.stack(columns, dim=-1)


@dataclass(frozen=True)
class RelativeError:
    """Errors of a gradient estimate, divided by the root mean square of the exact gradient over x ~ p_θ.

    Attributes:
        rms: root mean square over x and repeats.
        bias: root mean square over x of the mean over repeats, less what the noise left in that mean contributes
            (the variance over repeats, divided by their number); 0 where nothing is left of it, or with one repeat.
    """

    rms: float
    bias: float


def relative_error(estimates: Tensor, exact: Tensor) -> RelativeError:
    """The errors of R repeats of an estimate.

    Args:
        estimates: (R, B, P), for B observations x_b ~ p_θ.
        exact: (B, P).
    """
    repeats, size = len(estimates), exact.square().sum(1).mean()
    errors = estimates - exact
    squared_bias = estimates.new_zeros(())
    if repeats > 1:
        squared_bias = (errors.mean(0).square() - errors.var(0) / repeats).sum(1).mean().clamp_min(0)
    rms = errors.square().sum(2).mean().sqrt()
    return RelativeError(float(rms / size.sqrt()), float((squared_bias / size).sqrt()))


@torch.no_grad()
def predictions(model: LatentVariableModel, regression: KernelRidge, sleep: Sleep, x: Tensor) -> dict[str, Tensor]:
    """∇_θ Ĵ(x_b) for x (B, *event) in either form, each (B, P), from one regression on the sleep samples.

    Raises:
        UserError: the regression failed.
    """
    fitted = regression.fit(sleep.x)
    if fitted.failure is not None:
        raise UserError(f"the gradient cannot be estimated because {fitted.failure}; raise the regression's ridge.")
    weights = fitted.weights(x)
    return {form: parameter_gradient(Expectation(model, form), sleep, weights, x) for form in FORMS}


@torch.no_grad()
def amortised_gradients(
    model: LatentVariableModel, regression: KernelRidge, x: Tensor, sleep_samples: int, held_out: Tensor
) -> dict[str, Tensor]:
    """∇_θ Ĵ(x_b) from one set of sleep samples: "plug_in", "direct", and each "…_centred", all (B, P).

    Centred, the mean estimate over held-out observations of the model is subtracted, as ``Learning.centring`` does. To
    these log p_θ(z, x) is not applied.

    Args:
        model: p_θ.
        regression: as built for the model's observations.
        x: (B, *event).
        sleep_samples: N.
        held_out: observations (N_v, *event) of the model.

    Raises:
        UserError: the regression failed.
    """
    query = torch.cat([x, held_out])
    estimates = {}
    for form, gradient in predictions(model, regression, model.sleep(sleep_samples), query).items():
        estimates[form] = gradient[: len(x)]
        estimates[f"{form}_centred"] = gradient[: len(x)] - gradient[len(x) :].mean(0)
    return estimates
