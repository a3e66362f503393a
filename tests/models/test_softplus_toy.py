"""The softplus toy: its likelihood and gradient against integrals, and b recovered from the model's own data."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import pytest
import torch
from runs import trainer
from torch.distributions import Normal

from datamodules import SoftplusData
from lightning_alws.errors import UserError
from lightning_alws.learning import Learning
from lightning_alws.low_rank import LowRankRidge
from lightning_alws.metrics.gradient_toy import representative
from lightning_alws.metrics.gradients import amortised_gradients, relative_error
from lightning_alws.models import SoftplusToy
from lightning_alws.models.softplus_toy import SoftplusGenerator
from lightning_alws.quantile_kernel import QuantileKernel
from lightning_alws.regression import freeze

REGRESSION = functools.partial(LowRankRidge, ridge=1.0, kernel=QuantileKernel)


def toy(norm: float = 1.0, scale: float = 0.3, angle: float = 45.0, learn_noise: bool = False) -> SoftplusGenerator:
    return SoftplusGenerator(norm, angle, scale, learn_noise).double()


@pytest.mark.parametrize(
    ("norm", "scale", "x", "log_p", "slope"),
    [(1.0, 0.3, 0.3, -1.00277, -3.35431), (1.5, 0.1, -1.0, -1.16751, -3.33605), (0.7, 0.5, 1.2, -1.64529, -2.49663)],
)
def test_known_values(norm: float, scale: float, x: float, log_p: float, slope: float) -> None:
    """log p(x) and ∂ log p(x) / ∂‖b‖ as derived by hand and checked by finite differences."""
    model = toy(norm, scale, angle=20.0)
    at = torch.tensor([[x]], dtype=torch.float64)
    assert model.log_marginal(at).item() == pytest.approx(log_p, abs=1e-5)
    gradient = model.exact_gradient(at)[0]
    assert float((gradient @ model.weight / model.norm).detach()) == pytest.approx(slope, abs=1e-5)
    assert float(gradient[0] / gradient[1]) == pytest.approx(1 / math.tan(math.radians(20.0)), rel=1e-6)


def test_exact_gradient_is_that_of_the_marginal() -> None:
    model = toy(1.5, 0.1)
    x = representative(model, 7)
    ours = model.exact_gradient(x)
    for row, value in zip(ours, model.log_marginal(x), strict=True):
        (gradient,) = torch.autograd.grad(value, model.weight, retain_graph=True)
        torch.testing.assert_close(row, gradient, rtol=1e-8, atol=1e-8)


def test_marginal_integrates_to_one() -> None:
    model = toy(2.0, 0.1)
    x = torch.linspace(-6, 14, 1001, dtype=torch.float64)
    assert float(torch.trapezoid(model.log_marginal(x[:, None]).exp(), x)) == pytest.approx(1, abs=1e-8)


def test_moments_and_marginal_against_a_grid_of_both_latents() -> None:
    model = toy(1.2, 0.3, angle=30.0)
    x = torch.tensor([[-1.6], [0.4]], dtype=torch.float64)
    line = torch.linspace(-7, 7, 561, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    log_joint = torch.stack([model.likelihood(z).log_prob(row.expand(len(z), 1)) for row in x]) + model.log_prior(z)
    area = float(line[1] - line[0]) ** 2
    torch.testing.assert_close(model.log_marginal(x), log_joint.logsumexp(1) + math.log(area), rtol=0, atol=1e-8)
    mean, variance = model.posterior_moments(x)
    posterior = log_joint.softmax(1)
    torch.testing.assert_close(mean, posterior @ z, rtol=0, atol=1e-8)
    torch.testing.assert_close(variance, posterior @ z.square() - (posterior @ z).square(), rtol=0, atol=1e-8)


def test_log_joint_is_its_definition() -> None:
    model = toy(1.3, 0.2, angle=10.0)
    sleep = model.sleep(9)
    mean = torch.nn.functional.softplus(sleep.z @ model.weight) - 1.3**2
    reference = Normal(mean, 0.2).log_prob(sleep.x[:, 0]) + Normal(0, 1).log_prob(sleep.z).sum(1)
    ours = model.likelihood(sleep.z).log_prob(sleep.x) + model.log_prior(sleep.z)
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)  # σ was rounded to float32 once


@pytest.mark.parametrize(("learn_noise", "expected"), [(True, {"weight", "log_scale"}), (False, {"weight"})])
def test_parameters_that_get_a_gradient(learn_noise: bool, expected: set[str]) -> None:
    model = toy(learn_noise=learn_noise)
    sleep = model.sleep(50)
    sleep.joint.expectation(torch.rand(50, 1, dtype=torch.float64), sleep.x[:1]).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and (p.grad != 0).all()} == expected


def test_samples_follow_the_seed_and_the_density() -> None:
    model = toy()
    torch.manual_seed(3)
    first = model.sleep(20_000).x
    torch.manual_seed(3)
    assert torch.equal(first, model.sleep(20_000).x)
    edges = torch.linspace(-2, 2, 9, dtype=torch.float64)
    fine = torch.linspace(-2, 2, 801, dtype=torch.float64)
    density = model.log_marginal(fine[:, None]).detach().exp()
    for low, high in itertools.pairwise(edges):
        within = (fine >= low - 1e-9) & (fine <= high + 1e-9)
        probability = float(torch.trapezoid(density[within], fine[within]))
        share = float(((first >= low) & (first < high)).double().mean())
        assert abs(share - probability) < 4 * math.sqrt(probability / 20_000)


def test_amortised_gradient_converges_to_the_exact_one() -> None:
    """RMS error over x and 20 repeats, relative to the RMS gradient."""
    model = toy(1.0, 0.3)
    regression = REGRESSION((1,)).double()
    freeze(regression)
    x = representative(model, 30)
    errors = {}
    for count in (1000, 4000):
        draws = [amortised_gradients(model, regression, x, count, x) for _ in range(20)]
        for form in ("plug_in", "direct"):
            estimates = torch.stack([draw[form] for draw in draws])
            errors[form, count] = relative_error(estimates, model.exact_gradient(x)).rms
    for form in ("plug_in", "direct"):
        assert errors[form, 4000] <= 0.1
        assert errors[form, 1000] >= 1.5 * errors[form, 4000]


@pytest.mark.slow
def test_norm_and_noise_are_recovered_from_data_of_the_model_itself(tmp_path: Path) -> None:
    learning = Learning(sleep_samples=400, held_out=100, regression=REGRESSION, mode="direct", centring=1.0,
                        learning_rate=0.05, averaging=0.95)  # fmt: skip
    module = SoftplusToy(norm=0.5, noise_scale=0.8, learn_noise=True, learning=learning)
    data = SoftplusData(norm=1.0, noise_scale=0.3, train_size=4000, batch_size=400)
    trainer(tmp_path, max_steps=150).fit(module, datamodule=data)
    assert float(module.evaluation_model.norm) == pytest.approx(1.0, rel=0.05)
    assert float(module.evaluation_model.scale) == pytest.approx(0.3, rel=0.1)
    assert set(module.evaluation_model.watched()) == {"norm", "noise_scale"}


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="model.norm is 0.0"):
        SoftplusGenerator(norm=0.0)
    with pytest.raises(UserError, match="model.noise_scale is -1"):
        SoftplusGenerator(noise_scale=-1)
    with pytest.raises(UserError, match=r"shape \(1, 8, 8\), but SoftplusToy makes single numbers"):
        SoftplusToy(event_shape=(1, 8, 8))
