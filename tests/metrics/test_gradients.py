"""Gradients of many observations at once, and their errors, against one at a time and against known errors."""

from __future__ import annotations

import functools

import pytest
import torch
from models import LearntPrior, LinearGaussian, flat_gradient

from lightning_alws.errors import UserError
from lightning_alws.kernels import GaussianKernel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.metrics.gradients import (
    LogJoint,
    amortised_gradients,
    parameter_gradient,
    predictions,
    relative_error,
)
from lightning_alws.regression import KernelRidge, freeze

RIDGE = functools.partial(KernelRidge, kernel=functools.partial(GaussianKernel, bandwidth=2.0), ridge=0.1)


@pytest.mark.parametrize("make", [LinearGaussian, LearntPrior])
def test_gradient_of_each_value_is_that_of_a_backward_pass(make) -> None:
    model = make()
    sleep = model.sleep(5)
    ours = parameter_gradient(LogJoint(model), sleep.z, sleep.x)
    log_joint = model.likelihood(sleep.z).log_prob(sleep.x) + model.log_prior(sleep.z)
    torch.testing.assert_close(LogJoint(model)(sleep.z, sleep.x), log_joint)
    for row, value in zip(ours, log_joint, strict=True):
        torch.testing.assert_close(row, flat_gradient(value, model))


@pytest.mark.parametrize("make", [LinearGaussian, LearntPrior])
@pytest.mark.parametrize("form", ["plug_in", "direct"])
def test_predictions_are_the_gradients_of_a_training_step(make, form: str) -> None:
    model = make()
    mode = form.replace("_", "-")
    module = AmortisedLearning(model, Learning(sleep_samples=30, regression=RIDGE, mode=mode))  # type: ignore[arg-type]
    module.double()
    sleep, _ = module.sleep()
    x = model.sleep(4).x
    values = module.wake(module.regress(sleep), sleep, x)
    reference = torch.stack([flat_gradient(value, model) for value in values])
    torch.testing.assert_close(predictions(model, module.regression, sleep, x)[form], reference)


def test_centred_estimates_are_shifted_alike_and_have_mean_zero_over_the_model() -> None:
    model = LinearGaussian()
    regression = RIDGE((3,)).double()
    freeze(regression)
    x = model.sleep(2000).x
    estimates = amortised_gradients(model, regression, x, 40, model.sleep(2000).x)
    for form in ("plug_in", "direct"):
        shift = estimates[form] - estimates[f"{form}_centred"]
        torch.testing.assert_close(shift, shift[:1].expand_as(shift))
        centred = estimates[f"{form}_centred"]
        # The mean over other draws of the model, within four standard errors of both means.
        assert (centred.mean(0).abs() < 4 * centred.std(0) * (2 / 2000) ** 0.5).all()


def test_relative_error_of_known_bias_and_noise() -> None:
    torch.manual_seed(0)
    exact = torch.randn(400, 2, dtype=torch.float64)
    exact /= exact.square().sum(1).mean().sqrt()
    offset = torch.tensor([0.3, 0.4], dtype=torch.float64)
    noise = torch.randn(5, 400, 2, dtype=torch.float64) / 2**0.5
    error = relative_error(2 * (exact + offset + 1.0 * noise), 2 * exact)
    assert error.bias == pytest.approx(0.5, rel=0.1)
    assert error.rms == pytest.approx((0.25 + 1) ** 0.5, rel=0.05)
    assert relative_error(exact[None] + noise[:1], exact).bias == 0  # one repeat cannot tell
    assert relative_error(exact.expand(3, -1, -1), exact).rms == 0


def test_a_failed_regression_is_named() -> None:
    model = LinearGaussian()
    regression = RIDGE((3,)).double()
    freeze(regression)
    sleep = model.sleep(10)
    sleep.x[0, 0] = float("nan")
    with pytest.raises(UserError, match="cannot be estimated because sleep samples hold 1 non-finite"):
        predictions(model, regression, sleep, torch.zeros(1, 3, dtype=torch.float64))
