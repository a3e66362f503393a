"""The model on the circle: densities against torch's, exact log p(x) and its gradient by quadrature over the angle."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from models import flat_gradient
from torch.distributions import Normal

from lightning_alws.errors import UserError
from lightning_alws.kernels import MedianKernel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.models import CircleModel
from lightning_alws.models.circle import CircleGenerator, on_circle
from lightning_alws.networks import DCGANDecoder, MLPDecoder
from lightning_alws.noise import seeded
from lightning_alws.regression import KernelRidge


def generator(
    shape: tuple[int, ...] = (2,),
    hidden: Sequence[int] = (4,),
    log_scale: float = -1.2,
    gain: float = 1.5,
    **settings: Any,
) -> CircleGenerator:
    """A float64 generative part: a closed curve in few dimensions, with noise of about a third of its size."""
    torch.manual_seed(0)
    model = CircleGenerator(shape, functools.partial(MLPDecoder, hidden=[*hidden]), **settings).double()
    torch.nn.init.constant_(model.pixels.log_scale, log_scale)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(gain)
    return model


@pytest.mark.parametrize("noise_floor", [0.0, 0.2])
@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)], ids=str)
def test_log_joint_is_torchs(shape: tuple[int, ...], noise_floor: float) -> None:
    model = generator(shape, noise_floor=noise_floor)
    z = model.sample_prior(6)
    x = torch.randn(6, *shape, dtype=torch.float64)
    scale = math.sqrt(noise_floor**2 + math.exp(-2.4))
    reference = Normal(model.decoder(z).tanh(), scale).log_prob(x).flatten(1).sum(1) - math.log(2 * math.pi)
    torch.testing.assert_close(model.log_prior(z) + model.likelihood(z).log_prob(x), reference)
    assert float(model.watched()["noise_scale"].detach()) == pytest.approx(scale)


def test_latents_lie_evenly_on_the_circle_and_follow_the_seed() -> None:
    model = generator()
    z = model.sample_prior(20_000)
    assert z.dtype == torch.float64
    torch.testing.assert_close(z.norm(dim=1), torch.ones(20_000, dtype=torch.float64))
    angle = torch.atan2(z[:, 1], z[:, 0])
    for k in (1, 2, 3, 4):  # every harmonic of a uniform angle has mean zero
        assert torch.polar(torch.ones_like(angle), k * angle).mean().abs() < 4 / 20_000**0.5
    with seeded(torch.device("cpu"), "a"):
        first = model.sleep(5)
    with seeded(torch.device("cpu"), "a"):
        second = model.sleep(5)
    assert torch.equal(first.x, second.x)
    assert isinstance(first.z, torch.Tensor)
    assert torch.equal(first.z, second.z)


def test_a_point_on_the_circle_is_not_any_two_numbers() -> None:
    """A Gaussian about it, or Hamiltonian dynamics, would leave the circle: such methods are refused by this."""
    assert not generator().latents_are_real


def test_a_turn_goes_round_once_in_equal_steps() -> None:
    z = generator().turn(8)
    torch.testing.assert_close(z, on_circle(torch.arange(-4, 4, dtype=torch.float64) * math.pi / 4))


@pytest.mark.parametrize(("hidden", "tolerance"), [([], 1e-10), ([4], 1e-5)], ids=["smooth", "ReLU"])
def test_log_marginal_is_the_integral_over_the_angle(hidden: list[int], tolerance: float) -> None:
    model = generator(hidden=hidden, noise_floor=0.05)
    x = model.sleep(5).x
    angle = torch.linspace(-math.pi, math.pi, 200_001, dtype=torch.float64)
    mean = model.decoder(on_circle(angle)).tanh()
    log_prob = Normal(mean, math.sqrt(0.05**2 + math.exp(-2.4))).log_prob(x[:, None]).sum(-1)
    reference = torch.trapezoid(log_prob.exp(), angle) / (2 * math.pi)
    torch.testing.assert_close(model.log_marginal(x), reference.log(), rtol=0, atol=tolerance)


def test_gradient_of_log_marginal_is_the_posterior_mean_of_that_of_log_joint() -> None:
    """∇_θ log p(x) = E[∇_θ log p_θ(z, x)|x], and against finite differences."""
    model = generator()
    x = model.sleep(1).x
    exact = flat_gradient(model.log_marginal(x, 500).sum(), model)
    log_joint = model.likelihood(model.turn(500)).log_prob(x.expand(500, -1))
    posterior = log_joint.detach().softmax(0)
    torch.testing.assert_close(exact, flat_gradient((posterior * log_joint).sum(), model))
    differences = []
    for parameter in model.parameters():
        for entry in parameter.data.view(-1):
            values = []
            for step in (1e-6, -2e-6):
                entry += step
                values.append(float(model.log_marginal(x, 500).detach()))
            entry += 1e-6
            differences.append((values[0] - values[1]) / 2e-6)
    torch.testing.assert_close(exact, torch.tensor(differences, dtype=torch.float64), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_amortised_gradient_converges_to_the_exact_one() -> None:
    """RMS error over x ~ p_θ and repeats, relative to the RMS exact gradient: ≤ 10 % at N = 4 000.

    One pixel, whose posterior has two modes, at a and −a, so that no Gaussian fits it. With two pixels the error at
    N = 4 000 is 10-12 %, most of it from few x in the tails of p_θ, where hardly a sleep sample falls.
    """
    model = generator((1,), hidden=[], log_scale=0.0)
    with torch.no_grad():
        for parameter, value in zip(model.decoder.parameters(), ([[2.0, 0.2]], [0.1]), strict=True):
            parameter.copy_(torch.tensor(value))
    torch.manual_seed(0)
    x = model.sleep(40).x
    exact = torch.stack([flat_gradient(value, model) for value in model.log_marginal(x)])
    single = copy.deepcopy(model).float()  # the factorisation takes most of the seconds
    errors = {}
    for count in (1000, 4000):
        # Twice the median: the noise is wide, and so is what E[∇_θ log p|x] varies over.
        regression = functools.partial(KernelRidge, kernel=functools.partial(MedianKernel, multiple=2.0), ridge=0.1)
        module = AmortisedLearning(single, Learning(sleep_samples=count, regression=regression))
        found = []
        for _ in range(20):
            sleep, _ = module.sleep()
            values = module.wake(module.regress(sleep), sleep, x.float())
            found.append(torch.stack([flat_gradient(value, single) for value in values]).double())
        errors[count] = float((torch.stack(found) - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert errors[4000] <= 0.10, errors
    assert errors[1000] >= 1.5 * errors[4000], errors


@pytest.mark.parametrize("centring", [0.0, 1.0])
@pytest.mark.parametrize(
    ("decoder", "shape"),
    [(functools.partial(MLPDecoder, hidden=[6]), (3,)), (functools.partial(DCGANDecoder, ngf=2), (1, 8, 8))],
)
def test_every_parameter_receives_a_gradient(decoder: Any, shape: tuple[int, ...], centring: float) -> None:
    module = CircleModel(decoder, Learning(sleep_samples=30, held_out=20, centring=centring), event_shape=shape)
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    module.training_step(torch.rand(5, *shape), 0).backward()
    without = [name for name, p in module.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert without == []
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"generative"}


@pytest.mark.slow
def test_recovers_the_model_that_made_the_data() -> None:
    """Noise scale and held-out log-likelihood, from another beginning; the weights themselves have many twins."""
    truth = generator(hidden=[8], log_scale=-1.6).float()
    x, held_out = truth.sleep(4000).x.split(3000)
    torch.manual_seed(1)
    regression = functools.partial(KernelRidge, kernel=MedianKernel, ridge=1.0)
    learning = Learning(sleep_samples=200, regression=regression, centring=1.0, learning_rate=0.02, averaging=0.98)
    module = CircleModel(functools.partial(MLPDecoder, hidden=[8]), learning, noise_floor=0.0, event_shape=(2,))
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    optimiser = module.configure_optimizers()
    for step in range(300):
        optimiser.zero_grad()
        module.training_step(x[100 * step % 3000 :][:100], step).backward()
        optimiser.step()
        module.averaged.update_parameters(module.generative)  # type: ignore[union-attr]
    model: Any = module.evaluation_model
    gap = float((truth.log_marginal(held_out) - model.log_marginal(held_out)).mean().detach())
    scales = [float(m.pixels.scale.detach()) for m in (model, truth)]
    assert scales[0] == pytest.approx(scales[1], rel=0.1)
    assert gap < 0.05, gap


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"event_shape": None}, "no attribute 'event_shape'"),
    ({"noise_floor": -0.1}, "model.noise_floor is -0.1"),
    ({"noise_floor": 1.0}, "model.noise_floor is 1.0"),
    ({"event_shape": (1, 28, 28)}, "square images"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[str(changes) for changes, _ in MISTAKES])
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CircleModel(**({"event_shape": (1, 16, 16)} | changes))
