"""The contract of a generative model, checked before the first step: a mistake is named, not trained on.

A model that breaks it often trains without complaint, and learns nothing or something else: a log-joint under
``no_grad`` leaves only the priors to learn from (the published matrix factorisation), draws from another library's
generator are the same on every rank and cannot be resumed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.generative import GenerativeModel, LatentVariableModel, Simulator, Sleep
from lightning_alws.noise import seeded
from lightning_alws.penalties import Penalty

COUNT = 6  # sleep samples to try; more than one, and not a size that layers are likely to have


def check_model(model: GenerativeModel, direct: bool, penalties: Sequence[Penalty] = ()) -> None:
    """Draw a few sleep samples and differentiate a prediction; the global generators are left as they were.

    Args:
        model: the model, on any device.
        direct: whether log p_θ(z_n, x_n) itself is regressed.
        penalties: log priors on its parameters, which give gradients too.

    Raises:
        UserError: samples carry a gradient or ignore the seed; a shape is wrong; a value is not finite; a parameter
            gets no gradient.
    """
    name = type(model).__name__
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    _check_samples_carry_no_gradient(model, name, device)
    with torch.enable_grad(), seeded(device, "contract", 0):
        sleep = model.sleep(COUNT, direct=direct)
    _check_shapes(sleep, name)
    _check_noise(model, sleep, name, device, direct)
    _check_gradients(model, sleep, name, penalties)


def check_data(model: GenerativeModel, x: Tensor, direct: bool) -> None:
    """Compare the first batch of observations x (B, *event) with what the model makes.

    Raises:
        UserError: they are no tensor, their shapes differ, or the data hold a NaN or an infinity.
    """
    if not isinstance(x, Tensor):
        raise UserError(
            f"a batch of the data is a {type(x).__name__}, not a tensor of observations; let the data module yield "
            "tensors, or override observe(batch) of the LightningModule."
        )
    device = x.device
    with torch.no_grad(), seeded(device, "contract", 0):
        made = model.sleep(2, direct=direct).x
    if made.shape[1:] != x.shape[1:]:
        raise UserError(
            f"{type(model).__name__} makes observations of shape {tuple(made.shape[1:])}, but those of the data have "
            f"{tuple(x.shape[1:])}; change the model's sizes or choose other data."
        )
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise UserError(f"the first batch of data holds {bad} non-finite of {x.numel()} values; remove or fill them.")


def _parts(sleep: Sleep) -> dict[str, Tensor]:
    latents = sleep.z if isinstance(sleep.z, dict) else {"": sleep.z}
    return {**{f"latents {part}".strip(): z for part, z in latents.items()}, "observations": sleep.x}


def _check_samples_carry_no_gradient(model: GenerativeModel, name: str, device: torch.device) -> None:
    with torch.enable_grad(), seeded(device, "contract", 0):
        if isinstance(model, LatentVariableModel):
            method, tensors = "sample_prior", [model.sample_prior(COUNT)]
        elif isinstance(model, Simulator):
            z, x = model.simulate(COUNT)
            method, tensors = "simulate", [*(z.values() if isinstance(z, dict) else [z]), x]
        else:
            sleep = model.sleep(COUNT, True)
            method, tensors = "sleep", [*_parts(sleep).values()]
    if any(tensor.requires_grad for tensor in tensors):
        raise UserError(
            f"{name}.{method} returns a sample that carries a gradient; amortised learning differentiates log p(z, x) "
            "at given samples: draw with sample() instead of rsample(), or detach() it."
        )


def _check_shapes(sleep: Sleep, name: str) -> None:
    for part, tensor in _parts(sleep).items():
        if tensor.ndim == 0 or len(tensor) != COUNT:
            raise UserError(
                f"{name} returns {part} of shape {tuple(tensor.shape)} when asked for {COUNT} samples; the first "
                "dimension must be the number of samples."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{name} returns {part} that are not finite; check its initial parameters.")
    log_joint = sleep.joint.log_joint
    if tuple(log_joint.shape) != (COUNT,):
        raise UserError(
            f"{name} gives a log p(z, x) of shape {tuple(log_joint.shape)} for {COUNT} samples; it must be "
            f"({COUNT},), one number a sample: sum over all other dimensions."
        )
    if not torch.isfinite(log_joint).all():
        raise UserError(f"{name} gives a log p(z, x) that is not finite for its own samples; check its parameters.")


def _check_noise(model: GenerativeModel, sleep: Sleep, name: str, device: torch.device, direct: bool) -> None:
    with torch.no_grad(), seeded(device, "contract", 0):
        again = model.sleep(COUNT, direct=direct)
    with torch.no_grad(), seeded(device, "contract", 1):
        other = model.sleep(COUNT, direct=direct)
    for (part, first), second in zip(_parts(sleep).items(), _parts(again).values(), strict=True):
        if not torch.equal(first, second):
            raise UserError(
                f"{name} returns other {part} when drawn again with the same seed; draw with torch's own functions, "
                "whose generators are seeded, and keep no state between draws."
            )
    if all(torch.equal(a, b) for a, b in zip(_parts(sleep).values(), _parts(other).values(), strict=True)):
        raise UserError(f"{name} returns the same samples whatever the seed; do not seed a generator inside the model.")


def _check_gradients(model: GenerativeModel, sleep: Sleep, name: str, penalties: Sequence[Penalty]) -> None:
    parameters = {path: p for path, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise UserError(f"{name} has no parameters to learn; register them as torch.nn.Parameter.")
    with torch.enable_grad():
        # Signed weights: the likelihood's normaliser must not cancel by chance.
        weights = torch.linspace(-0.5, 1.0, COUNT, dtype=sleep.x.dtype, device=sleep.x.device)[:, None]
        expectation = sleep.joint.expectation(weights, sleep.x[:1]).sum()
    if not expectation.requires_grad:
        raise UserError(f"{name}'s log p(z, x) carries no gradient at all; compute it without no_grad() and detach().")
    with torch.enable_grad():
        for penalty in penalties:
            expectation = expectation - penalty(model)
    gradients = torch.autograd.grad(expectation, [*parameters.values()], allow_unused=True)
    without = [path for path, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if without:
        learnt = ", or set prior_is_learnt = True if it belongs to the prior" * (
            isinstance(model, LatentVariableModel) and not model.prior_is_learnt
        )
        raise UserError(
            f"{name}'s parameter {', '.join(without)} gets no gradient from log p(z, x); use it there{learnt}, or "
            "switch it off with requires_grad_(False)."
        )
    infinite = [p for p, gradient in zip(parameters, gradients, strict=True) if not torch.isfinite(gradient).all()]
    if infinite:
        raise UserError(f"{name}'s log p(z, x) has a gradient that is not finite in {', '.join(infinite)}.")
