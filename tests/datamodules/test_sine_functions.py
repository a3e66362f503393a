"""Random sine functions: what a batch holds, what it follows from, and the oracle against other integrations."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import dblquad
from torch import Tensor

from datamodules import SineFunctions
from datamodules.sine_functions import AMPLITUDE, SHIFT, SinePosterior, sine
from lightning_alws.errors import UserError

SMALL = {"training_functions": 12, "validation_functions": 5, "test_functions": 40}


def ready(**settings: int | float) -> SineFunctions:
    data = SineFunctions(**(SMALL | settings))  # type: ignore[arg-type]
    data.setup()
    return data


def test_a_batch_is_points_of_the_functions_context_first() -> None:
    data = ready(batch_size=4, context_points=3, target_points=2)
    assert data.event_shape == (5,)
    assert data.sizes == {"train": 12, "val": 5, "test": 40}
    for batch in (*data.train_dataloader(), *data.val_dataloader()):
        assert batch.dtype == torch.float32
        assert batch.shape[1:] == (5, 3)
        assert torch.equal(batch[..., 2], torch.tensor([1.0, 1, 1, 0, 0]).expand(len(batch), -1))
        for function in batch:
            assert len(function[:, 0].unique()) == 5
    assert data.rows("val")[..., 0].abs().max() <= math.pi


def test_outputs_are_the_true_functions_with_the_noise_asked_for() -> None:
    data = ready(noise=0.3, test_functions=500, context_points=50, target_points=50)
    points, parameters = data.rows("test"), data.parameters("test")
    for column, (low, high) in enumerate((AMPLITUDE, SHIFT)):
        values = parameters[:, column]
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.1)
        assert low <= float(values.min()) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < float(values.max()) <= high
    residual = points[..., 1] - torch.stack([sine(p[None], x)[0] for p, x in zip(parameters, points[..., 0])])  # noqa: B905
    assert float(residual.std()) == pytest.approx(0.3, rel=0.02)
    assert float(residual.mean()) == pytest.approx(0, abs=0.005)
    x = torch.linspace(-2, 2, 7)
    expected = parameters[3, 0] * torch.sin(x - parameters[3, 1])
    torch.testing.assert_close(data.truth("test", x)[3], expected)


def test_training_points_are_others_each_epoch_and_the_same_after_a_resume() -> None:
    data = ready(batch_size=5)
    batches = data.train_dataloader()
    first, again = [*batches], [*batches]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    batches.set_epoch(1)
    inputs = {float(x) for x in torch.cat(first)[..., 0].flatten()}
    assert len(inputs & {float(x) for x in torch.cat([*batches])[..., 0].flatten()}) < len(inputs)
    resumed = ready(batch_size=5).train_dataloader()
    resumed.load_state_dict({"epoch": 0, "position": 1})
    assert all(torch.equal(a, b) for a, b in zip(resumed, first[1:], strict=True))


def test_held_out_functions_depend_on_the_seed_alone() -> None:
    test = ready().rows("test")
    other = ready(batch_size=3, training_functions=4, validation_functions=2)
    assert torch.equal(test, other.rows("test"))
    batches = other.test_dataloader()
    batches.set_epoch(3)
    assert torch.equal(test, torch.cat([*batches]))
    assert not torch.equal(test, ready(seed=1).rows("test"))
    assert not torch.equal(ready().rows("val")[:, :, 0], test[:5, :, 0])


def joint(points: Tensor, noise: float) -> float:
    """∫∫ p(a) p(b) Π_t N(y_t; a sin(x_t − b), noise²) da db by scipy's adaptive quadrature."""
    pairs = [(float(x), float(y)) for x, y, _ in points]

    def density(b: float, a: float) -> float:
        squared = sum((y - a * math.sin(x - b)) ** 2 for x, y in pairs)
        return math.exp(-0.5 * squared / noise**2) / (noise * math.sqrt(2 * math.pi)) ** len(pairs)

    area = (AMPLITUDE[1] - AMPLITUDE[0]) * (SHIFT[1] - SHIFT[0])
    return dblquad(density, *AMPLITUDE, *SHIFT, epsabs=0, epsrel=1e-7)[0] / area


def test_the_oracle_is_the_ratio_of_two_integrals() -> None:
    points = ready().rows("test")[:2]
    ours = SinePosterior.of(points, 0.1).log_predictive(points)
    for function, value in zip(points, ours, strict=True):
        reference = math.log(joint(function, 0.1) / joint(function[:4], 0.1))
        assert float(value) == pytest.approx(reference, abs=1e-5)


def test_the_oracles_quadrature_has_converged() -> None:
    points = ready().rows("test")
    coarse, fine = (SinePosterior.of(points, 0.1, order).log_predictive(points) for order in (64, 80))
    torch.testing.assert_close(coarse, fine, atol=1e-6, rtol=0)


def test_functions_drawn_from_the_oracle_have_its_mean_and_pass_near_the_context() -> None:
    data = ready(context_points=8)
    points, x = data.rows("test")[:6], torch.linspace(-3, 3, 5)
    posterior = data.oracle(points)
    torch.testing.assert_close(posterior.log_weights.exp().sum(-1), torch.ones(6, dtype=torch.float64))
    drawn = posterior.sample(4000, x)
    assert drawn.shape == (6, 4000, 5)
    mean = posterior.log_weights.exp() @ sine(posterior.nodes, x.double())
    torch.testing.assert_close(drawn.mean(1).double(), mean, atol=0.01, rtol=0)
    assert float((drawn.mean(1) - data.truth("test", x)[:6]).abs().max()) < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_points": 0}, "data.context_points is 0"),
        ({"test_functions": -1}, "data.test_functions is -1"),
        ({"context_points": 60, "target_points": 41}, "60 and data.target_points 41.*100 points"),
        ({"noise": 0.0}, "data.noise is 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SineFunctions(**settings)
