"""Amortised learning with a network that regresses J (AL-NN): an alternative to kernel ridge regression, no guarantee.

    sleep    z_n, x_n ~ p_θ,   y_n(θ) = log p_θ(z_n, x_n)
    regress  γ_{m+1} = γ_m − α ∇_γ (1/N) Σ_n (f_γ(x_n) − y_n(θ))² at γ_m,   m = 0 … M − 1,   γ_0 = γ
    wake     Ĵ(x*) = f_{γ_M(θ)}(x*),   ∇_θ Ĵ(x*) = Σ_n ∂f_{γ_M}(x*)/∂y_n ∇_θ y_n(θ)
    update   θ ← Adam(−mean Ĵ(x*)),   γ ← Adam(mean_n (f_γ(x_n) − y_n)²)

(f's constant is solved for, not descended to; targets are in standard units.)

A network's prediction depends on θ only through the targets that it was trained on, so that a gradient in θ is one
through training: here through the last M steps of it, taken anew in each batch from a γ that Adam keeps close to its
optimum. The weights ∂f/∂y_n stand where kernel ridge regression has (K + λI)⁻¹k. There, prediction and gradient are one
regression, of log p and of ∇_θ log p alike. Here they are two: Ĵ is as good as all of training made it, ∇_θ Ĵ is what
M steps of the network's tangent kernel, fitted to the level of J, make of a small change of that level. With few steps
it falls short of the gradient's size, most where the tangent kernel is least; with many, it is kernel regression with
that kernel, unregularised (``benchmarks/gradient_error_rivals.py``). The authors' talk names the alternative and gives
no settings.

Other forms weighed. Predicting natural parameters and log-normaliser and putting x* in ("plug-in") gets its gradient in
the same roundabout way, with hundreds of outputs to fit; and it no longer regresses J. Solving for the last layer
exactly is kernel ridge regression on trained features, that is AL-A.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_alws.baselines.image import EncoderBuilder, ImageMethod
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.generative import GenerativeModel
from lightning_alws.networks import ConvFeatures


class Regressor(nn.Module):
    """f_γ up to its constant: features of an observation, then one linear unit, in standard units of the targets.

    Args:
        encoder: from observations (B, *event) to features (B, F).
        event_shape: shape of one observation.
        rectified: whether a ReLU follows the features; without one, linear features make f_γ linear.
    """

    def __init__(self, encoder: nn.Module, event_shape: tuple[int, ...], rectified: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(encoder, nn.ReLU()) if rectified else encoder
        with torch.no_grad():
            width = self.features(torch.zeros(1, *event_shape)).shape[1]
        self.output = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """f_γ(x_b) for x (B, *event), shape (B,)."""
        return self.output(self.features(x))[:, 0]


class StandardUnits:
    """y ↦ (y − centre)/scale, both of given targets (N,) and constants in θ: Ĵ stays linear in the targets."""

    def __init__(self, targets: Tensor) -> None:
        targets = targets.detach()
        self.centre, self.scale = targets.mean(), targets.std().clamp_min(1e-6)

    def of(self, targets: Tensor) -> Tensor:
        return (targets - self.centre) / self.scale

    def inverse(self, standard: Tensor) -> Tensor:
        return self.centre + self.scale * standard


def squared_error(predicted: Tensor, targets: Tensor) -> Tensor:
    """min_c (1/N) Σ_n (predicted_n + c − y_n)², both (N,): the constant is solved for, not descended to.

    The constant is by far the steepest direction of a network with positive features (its curvature was 20 to 25 times
    the next one's): with it, steps small enough not to diverge leave all others where they are.
    """
    residual = predicted - targets
    return (residual - residual.mean()).square().mean()


def unrolled(network: nn.Module, x: Tensor, targets: Tensor, steps: int, rate: float) -> dict[str, Tensor]:
    """γ_M after M steps of gradient descent on (x_n, y_n) from the network's γ, differentiable in the targets alone."""
    parameters = {name: parameter.detach().requires_grad_() for name, parameter in network.named_parameters()}
    for _ in range(steps):
        error = squared_error(functional_call(network, parameters, (x,)), targets)
        gradients = torch.autograd.grad(error, [*parameters.values()], create_graph=True)
        parameters = {
            name: parameter - rate * gradient
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }
    return parameters


def network_expectation(
    network: nn.Module, x: Tensor, targets: Tensor, query: Tensor, steps: int, rate: float
) -> Tensor:
    """Ĵ(x*_b) for queries (B, *event), shape (B,), differentiable in what the targets depend on.

    Args:
        network: f_γ, in standard units of the targets.
        x: sleep observations (N, *event).
        targets: y_n = log p_θ(z_n, x_n), shape (N,).
        query: x*.
        steps: M; with 0, the network's own prediction.
        rate: α.
    """
    units = StandardUnits(targets)
    standard = units.of(targets)
    trained = unrolled(network, x, standard, steps, rate)
    predicted = functional_call(network, trained, (torch.cat([x, query]),))
    constant = (standard - predicted[: len(x)]).mean()
    return units.inverse(predicted[len(x) :] + constant)


class NetworkLearning(ImageMethod):
    """AL-NN on images.

    Args:
        encoder: builds the features of f_γ from the shape of an image.
        sleep_samples: N, in each step; all of them in each of the M unrolled ones.
        inner_steps: M.
        inner_rate: α, for targets in standard units; beyond the network's limit of stability the run diverges.
        settings: those of :class:`~lightning_alws.baselines.image.ImageMethod`.

    Raises:
        UserError: a setting makes no sense.
    """

    def __init__(
        self,
        encoder: EncoderBuilder = ConvFeatures,
        sleep_samples: int = 500,
        inner_steps: int = 5,
        inner_rate: float = 0.1,
        **settings: Any,
    ) -> None:
        check_at_least("model", sleep_samples=(sleep_samples, 2), inner_steps=(inner_steps, 1))
        if not inner_rate > 0:
            raise UserError(f"model.inner_rate is {inner_rate}; give a positive number, such as 0.1.")
        super().__init__(**settings)
        self.network = Regressor(encoder(self.image_shape), self.image_shape)
        self.sleep_samples, self.inner_steps, self.inner_rate = sleep_samples, inner_steps, inner_rate

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        """One update of the model through the unrolled steps, and one of the network they start from, in one loss."""
        sleep_x, targets = self.sleep(self.generative, "sleep")
        objective = network_expectation(self.network, sleep_x, targets, x, self.inner_steps, self.inner_rate).mean()
        error = squared_error(self.network(sleep_x), StandardUnits(targets).of(targets.detach()))
        self.log("train/objective", objective.detach(), prog_bar=True)
        self.log("train/unexplained_variance", error.detach())
        return error - objective

    def sleep(self, model: GenerativeModel, stream: str, index: int | None = None) -> tuple[Tensor, Tensor]:
        """Sleep observations (N, C, H, W) and log p_θ(z_n, x_n) (N,), without the prior unless that is learnt."""
        with self.noise(stream, index):
            sleep = model.sleep(self.sleep_samples, direct=True)
        return sleep.x, sleep.joint.log_joint

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        """Log f_γ, without unrolled steps, on held-out images, with a constant from the evaluated model's samples."""
        sleep_x, targets = self.sleep(self.evaluation_model, "validation", batch_idx)
        objective = network_expectation(self.network, sleep_x, targets, x, 0, self.inner_rate).mean()
        self.log("val/objective", objective, sync_dist=True, batch_size=len(x))
