"""The Hodgkin-Huxley model: its joint density, its gradient, seeds, runaway paths, recovery; mistakes are named."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from lightning_alws.errors import UserError
from lightning_alws.hodgkin_huxley import NAMES, Membrane, State
from lightning_alws.learning import Learning
from lightning_alws.models import HodgkinHuxleyModel
from lightning_alws.models.hodgkin_huxley import HodgkinHuxley
from lightning_alws.noise import seeded
from lightning_alws.regression import KernelRidge
from lightning_alws.standard_kernel import StandardKernel
from lightning_alws.trace_features import TraceFeatures

STEP = 0.05
TRUTH = Membrane()


def pulse(length: int) -> list[float]:
    return [10.0 if length // 10 <= t < length - length // 10 else 0.0 for t in range(length)]


def generator(length: int = 40, initial: Membrane = TRUTH, state: State = State()) -> HodgkinHuxley:  # noqa: B008
    return HodgkinHuxley((length,), pulse(length), STEP, initial, state)


def module(length: int = 40, initial: Membrane = TRUTH, **settings: Any) -> HodgkinHuxleyModel:
    regression = functools.partial(KernelRidge, kernel=StandardKernel, ridge=0.1, intercept=True)
    learning = Learning(**{"regression": regression, "mode": "direct", "centring": 1.0, **settings})
    made = HodgkinHuxleyModel(learning, initial, State(), (length,), pulse(length), STEP)
    made.log = lambda *args, **options: None  # type: ignore[method-assign]
    return made


def test_log_joint_is_prior_and_likelihood() -> None:
    model = generator().double()
    sleep = model.sleep(6)
    assert isinstance(sleep.z, Tensor)
    assert sleep.z.shape == sleep.x.shape == (6, 40)
    assert not sleep.z.requires_grad
    likelihood = Normal(sleep.z, TRUTH.observation_noise).log_prob(sleep.x).sum(-1)
    torch.testing.assert_close(sleep.joint.log_joint, model.log_prior(sleep.z) + likelihood, rtol=1e-6, atol=1e-5)


def test_the_layout_of_the_paths_does_not_matter() -> None:
    model = generator().double()
    z = model.sample_prior(5)
    torch.testing.assert_close(model.log_prior(z), model.log_prior(z.contiguous()))
    torch.testing.assert_close(model.log_prior(z)[2:4], model.log_prior(z[2:4]))


def test_constants_are_where_they_began() -> None:
    assert vars(generator().membrane) == pytest.approx(vars(TRUTH), rel=1e-6)
    watched = generator().watched()
    assert float(watched["initial_voltage"]) == pytest.approx(-70)
    assert {*NAMES, "m", "n", "h", "runaways"} <= set(watched)


@pytest.mark.parametrize("mode", ["direct", "plug-in"])
def test_every_parameter_gets_a_gradient(mode: str) -> None:
    learner = module(mode=mode, sleep_samples=60, held_out=30)
    learner.training_step(torch.randn(1, 40) - 65, 0).backward()
    gradients = {name: p.grad for name, p in learner.named_parameters() if p.requires_grad}
    expected = {f"generative.log_{name}" for name in NAMES}
    assert set(gradients) == expected | {"generative.initial_voltage", "generative.initial_gates"}
    for name, gradient in gradients.items():
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
        assert (gradient != 0).all(), name


def test_the_gradient_is_that_of_float64() -> None:
    learner = module(sleep_samples=50, held_out=20)
    sleep = learner.generative.sleep(8, direct=True)
    weights = torch.linspace(-0.4, 0.6, 8)
    (sleep.joint.log_joint @ weights).backward()
    single = {name: p.grad.double() for name, p in learner.generative.named_parameters()}
    model = generator().double()
    z, x = sleep.z.double(), sleep.x.double()
    values = model.log_prior(z) + model.likelihood(z).log_prob(x)
    double = torch.autograd.grad(values @ weights.double(), [*model.parameters()])
    # Sums over time of terms of order one and either sign: single precision is right to some 1e-4 of the terms, not of
    # what is left of them (on one processor the observation noise's is 0.02 off, of -8.7).
    rounding = 1e-4 * x.shape[1] * float(weights.abs().sum())
    for (name, ours), reference in zip(single.items(), double, strict=True):
        atol = rounding if name == "log_observation_noise" else 1e-3
        torch.testing.assert_close(ours, reference, rtol=2e-3, atol=atol, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_sleep_samples_follow_the_seed() -> None:
    model = generator()
    draws = []
    for seed in (1, 1, 2):
        with seeded(torch.device("cpu"), "test", seed):
            draws.append(model.sleep(5))
    assert torch.equal(draws[0].x, draws[1].x)
    assert torch.equal(draws[0].z, draws[1].z)  # type: ignore[arg-type]
    assert not torch.equal(draws[0].x, draws[2].x)


def test_a_path_that_runs_away_is_drawn_anew_and_counted() -> None:
    """Strong noise now and then throws the voltage so low that the gate h's step is unstable."""
    model = generator(60, Membrane(voltage_noise=10.0))
    with pytest.warns(UserWarning, match="ran away beyond 1 V"):
        z = model.sample_prior(400)
    assert torch.isfinite(z).all()
    assert float(z.abs().max()) < 1000
    assert 0 < float(model.runaways) < 0.5
    assert float(generator().sample_prior(50).abs().max()) < 1000
    assert torch.isfinite(model.log_prior(z)).all()


@pytest.mark.filterwarnings("ignore:some simulated voltages ran away")
def test_a_model_that_always_runs_away_skips_the_step_and_says_why() -> None:
    learner = module(sleep_samples=30, held_out=10)
    with torch.no_grad():
        learner.generative.initial_voltage.fill_(-4.0)  # −400 mV
    with pytest.warns(UserWarning, match="sleep samples hold .* non-finite"):
        learner.training_step(torch.zeros(1, 40), 0).backward()
    assert learner.skipped_total == 1


def exact_gradient(model: HodgkinHuxley, x: Tensor, count: int) -> Tensor:
    """∇_θ log p(x) = E[∇_θ log p(z, x) | x] of series (B, T), T small, from ``count`` paths weighted by p(x|z)."""
    z = model.sample_prior(count)
    squared = ((x[:, None] - z) / model.log_observation_noise.exp()).square().sum(-1)
    log_likelihood = -0.5 * squared - x.shape[1] * model.log_observation_noise
    weights = torch.softmax(log_likelihood.detach(), dim=1)
    return rows((weights * (log_likelihood + model.log_prior(z))).sum(1), model)


def rows(values: Tensor, model: HodgkinHuxley) -> Tensor:
    """∇_θ of each of B values, shape (B, 14)."""
    gradients = [torch.autograd.grad(value, [*model.parameters()], retain_graph=True) for value in values]
    return torch.stack([torch.cat([part.flatten() for part in parts]) for parts in gradients])


@pytest.mark.slow
def test_gradient_error_falls_with_the_sleep_samples() -> None:
    """Four steps on the way up of a spike, both noises 1 mV. Each of the 14 errors is relative to its own parameter.

    The exact gradient is by importance sampling with 30 000 paths, itself within 4 % for every parameter.
    """
    model = generator(4, Membrane(voltage_noise=1.0), State(-45.0, 0.3, 0.3, 0.5)).double()
    x = model.sleep(20).x
    exact = exact_gradient(model, x, 30_000)

    def error(count: int) -> float:
        squares = []
        for _ in range(20):
            sleep = model.sleep(count, direct=True)
            kernel = functools.partial(StandardKernel, degree=2)
            regression = KernelRidge((4,), kernel, ridge=0.1, intercept=True).double().requires_grad_(False)
            values = sleep.joint.expectation(regression.fit(sleep.x).weights(x), x)
            squares.append((rows(values, model) - exact).square().mean(0) / exact.square().mean(0))
        return float(torch.stack(squares).mean().sqrt())

    few, many = error(1000), error(4000)
    assert many <= 0.1
    assert few > 1.5 * many


@pytest.mark.slow
def test_constants_are_recovered_from_a_short_trace() -> None:
    """Ten milliseconds fix the observation noise, whatever the rest does; it begins at three times the truth."""
    length = 200
    truth = generator(length, Membrane(voltage_noise=0.5, observation_noise=2.0))
    x = truth.sleep(1).x
    regression = functools.partial(
        KernelRidge,
        kernel=functools.partial(StandardKernel, features=functools.partial(TraceFeatures, window=20)),
        ridge=0.3,
        intercept=True,
    )
    start = Membrane(voltage_noise=0.5, observation_noise=6.0)
    learner = module(length, start, regression=regression, sleep_samples=200, held_out=100, learning_rate=0.05)
    optimiser = torch.optim.Adam(learner.generative.parameters(), lr=0.03)
    for _ in range(60):
        optimiser.zero_grad()
        learner.training_step(x, 0).backward()
        optimiser.step()
    assert learner.skipped_total == 0
    assert float(learner.generative.log_observation_noise.exp()) == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_current": None}, "no attributes 'event_shape', 'input_current' and 'time_step'"),
        ({"event_shape": (5, 2)}, r"shape \(5, 2\) and an input current of 5 steps"),
        ({"event_shape": (6,)}, r"shape \(6,\) and an input current of 5 steps.*same length"),
        ({"initial": Membrane(capacitance=-1.0)}, "model.initial.capacitance is -1.0, but must be positive"),
        ({"state": State(m=-0.1)}, "model.state.m is -0.1"),
        ({"time_step": 1.0}, "runs away beyond 1 V at .* ms, with time steps of 1 ms and a current of up to 10 µA"),
        ({"input_current": [1e6] * 5}, "a current of up to 1e.06 µA/cm²; see that the data are in these units"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"event_shape": (5,), "input_current": [10.0] * 5, "time_step": STEP}
    with pytest.raises(UserError, match=message):
        HodgkinHuxleyModel(**(arguments | changes))
