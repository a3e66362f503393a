"""State space models: the density of a path against a plain loop, gradients by finite differences, windows."""

from __future__ import annotations

import functools

import pytest
import torch
from gradient_error import relative_error
from torch import Tensor
from torch.distributions import Normal

from lightning_alws.contract import check_model
from lightning_alws.errors import UserError
from lightning_alws.generative import Direct
from lightning_alws.kernels import PolynomialKernel
from lightning_alws.models.linear_dynamics import LinearDynamics
from lightning_alws.models.neural_dynamics import NeuralDynamics
from lightning_alws.smoother import innovations
from lightning_alws.state_space import StateSpaceModel
from lightning_alws.windows import Windows

MAKERS = [lambda: LinearDynamics((5, 3), 2), lambda: NeuralDynamics((5, 3), 2, hidden=4)]


@pytest.fixture(params=MAKERS, ids=["linear", "neural"])
def model(request: pytest.FixtureRequest) -> StateSpaceModel:
    """With no parameter at a value that its initialisation could make special."""
    made: StateSpaceModel = request.param().double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def log_joint_by_a_loop(model: StateSpaceModel, z: Tensor, x: Tensor) -> Tensor:
    """Path by path, step by step, with torch's own normal distribution."""
    totals = []
    for path, series in zip(z, x, strict=True):
        total = torch.zeros((), dtype=z.dtype)
        for t in range(len(path)):
            if isinstance(model, LinearDynamics):
                mean = model.dynamics @ path[t - 1] if t else model.initial_mean
                scale = (model.log_process_scale if t else model.log_initial_scale).exp()
                seen = model.loadings @ path[t]
            else:
                assert isinstance(model, NeuralDynamics)
                mean = model.step(path[t - 1] if t else model.start)
                scale, seen = model.log_process_scale.exp(), model.picture(path[t])
            total = total + Normal(mean, scale).log_prob(path[t]).sum()
            total = total + Normal(seen, model.log_observation_scale.exp()).log_prob(series[t]).sum()
        totals.append(total)
    return torch.stack(totals)


def test_log_joint_is_the_loops(model: StateSpaceModel) -> None:
    sleep = model.sleep(6)
    assert isinstance(sleep.z, Tensor)
    assert sleep.z.shape == (6, 5, 2)
    assert sleep.x.shape == (6, 5, 3)
    by_loop = log_joint_by_a_loop(model, sleep.z, sleep.x)
    torch.testing.assert_close(sleep.joint.log_joint, by_loop)
    assert model.log_prior_terms(sleep.z).shape == (6, 5)
    direct = model.sleep(3, direct=True)
    assert isinstance(direct.z, Tensor)
    assert isinstance(direct.joint, Direct)
    torch.testing.assert_close(direct.joint.log_joint, log_joint_by_a_loop(model, direct.z, direct.x))


def test_every_parameters_gradient_is_the_loops_difference_quotient(model: StateSpaceModel) -> None:
    sleep = model.sleep(4)
    assert isinstance(sleep.z, Tensor)
    value = (sleep.joint.log_joint * torch.tensor([1.0, -0.4, 0.6, 0.3]).double()).sum()
    exact = torch.autograd.grad(value, [*model.parameters()])
    for (name, parameter), gradient in zip(model.named_parameters(), exact, strict=True):
        assert gradient.abs().max() > 0, name
        flat, quotients = parameter.data.view(-1), []
        for i in range(len(flat)):
            kept, values = flat[i].clone(), []
            for change in (1e-5, -1e-5):
                flat[i] = kept + change
                with torch.no_grad():
                    by_loop = log_joint_by_a_loop(model, sleep.z, sleep.x)
                values.append((by_loop * torch.tensor([1.0, -0.4, 0.6, 0.3]).double()).sum())
            flat[i] = kept
            quotients.append((values[0] - values[1]) / 2e-5)
        torch.testing.assert_close(gradient.reshape(-1), torch.stack(quotients), rtol=1e-5, atol=1e-6, msg=name)


def test_paths_are_the_chains_and_follow_the_seed(model: StateSpaceModel) -> None:
    """Innovations of a path, divided by their scale, are independent standard normals."""
    z = model.sample_path(4000, 7)
    assert z.shape == (4000, 7, 2)
    assert not z.requires_grad
    with torch.no_grad():
        following = model.transition(z[:, :-1].flatten(0, 1)).mean
        steps = (z[:, 1:].flatten(0, 1) - following) / model.log_process_scale.exp()  # type: ignore[operator]
        torch.testing.assert_close(steps.T.cov(), torch.eye(2).double(), rtol=0, atol=0.04)
        torch.testing.assert_close(steps.mean(0), torch.zeros(2).double(), rtol=0, atol=0.03)
        first = model.initial()
        torch.testing.assert_close(z[:, 0].mean(0), first.mean[0], rtol=0, atol=0.08)
    torch.manual_seed(3)
    once = model.sleep(5)
    torch.manual_seed(3)
    again = model.sleep(5)
    assert torch.equal(once.x, again.x)


def test_windows_hold_the_neighbours_and_the_terms_of_the_paths(model: StateSpaceModel) -> None:
    windows = Windows(model, 1, 2)
    x = torch.arange(2 * 5 * 3).view(2, 5, 3).double() + 1
    cut = windows.cut(x)
    assert cut.shape == (10, 4, 3)
    assert torch.equal(cut[2], x[0, 1:5])
    assert torch.equal(cut[5], torch.cat([torch.zeros(1, 3), x[1, :3]]).double())
    assert torch.equal(cut[9], torch.cat([x[1, 3:], torch.zeros(2, 3)]).double())

    check_model(windows, direct=False)
    sleep = windows.sleep(10)
    assert isinstance(sleep.z, Tensor)
    assert torch.equal(windows.cut(sleep.x[:, 1].view(2, 5, 3)), sleep.x)
    of_paths = log_joint_by_a_loop(model, sleep.z.view(2, 5, 2), sleep.x[:, 1].view(2, 5, 3))
    torch.testing.assert_close(sleep.joint.log_joint.view(2, 5).sum(1), of_paths)
    assert len(windows.sleep(7)) == 7
    part = windows.sleep(10)[:4]
    torch.testing.assert_close(part.joint.expectation(torch.eye(4).double(), part.x), part.joint.log_joint)


def test_what_else_a_step_is_regressed_on_leaves_its_term_alone(model: StateSpaceModel) -> None:
    plain, rich = Windows(model, 1, 2), Windows(model, 1, 2, decay=0.5, innovations=0.3)
    x = torch.randn(2, 5, 3).double()
    cut = rich.cut(x)
    assert cut.shape == (10, 5, 3)
    torch.testing.assert_close(cut[:, :4], plain.cut(x) * torch.tensor([0.5, 1, 0.5, 0.25])[:, None])
    torch.testing.assert_close(cut[:, 4, :2], 0.3 * innovations(model, x).flatten(0, 1))
    assert not cut[:, 4, 2].any()
    assert not cut.requires_grad

    check_model(rich, direct=False)
    torch.manual_seed(0)
    sleep = rich.sleep(10)
    torch.manual_seed(0)
    of_plain = plain.sleep(10)
    assert torch.equal(sleep.z, of_plain.z)
    torch.testing.assert_close(sleep.joint.log_joint, of_plain.joint.log_joint)
    weights = torch.randn(10, 10).double()
    torch.testing.assert_close(sleep.joint.expectation(weights, cut), of_plain.joint.expectation(weights, plain.cut(x)))


def test_refinement_comes_by_and_by(model: StateSpaceModel) -> None:
    x = torch.randn(2, 5, 3).double()
    plain, rich = Windows(model, 1, 2), Windows(model, 1, 2, decay=0.5, innovations=0.3)
    slow = Windows(model, 1, 2, decay=0.5, innovations=0.3, refined_by=10)
    slow.at_step(0)
    torch.testing.assert_close(slow.cut(x)[:, :4], plain.cut(x))
    assert not slow.cut(x)[:, 4].any()
    slow.at_step(5)
    torch.testing.assert_close(slow.cut(x)[:, :4], plain.cut(x) * torch.tensor([0.5, 1, 0.5, 0.25]).sqrt()[:, None])
    torch.testing.assert_close(slow.cut(x)[:, 4], rich.cut(x)[:, 4] / 2)
    for step in (10, 11):
        slow.at_step(step)
        torch.testing.assert_close(slow.cut(x), rich.cut(x))


REPEATS = [(2, 1), *(pytest.param(20, seed, marks=pytest.mark.slow) for seed in (1,))]


@pytest.mark.parametrize(("repeats", "seed"), REPEATS)
def test_gradient_error_of_windows_falls_with_the_sleep_samples(repeats: int, seed: int) -> None:
    """Windows that hold all of two steps: Σ_t E[∇ term_t|x] is ∇ log p(x), exact by the Kalman filter.

    N counts time steps, half as many series. With three steps, a third as many, the error at N = 4 000 is 0.10. The
    series keeps away from 0, which stands for what is beyond its ends. Where observations are about 0 too, one
    regression has to tell the steps apart by that number, and takes far more samples: with ``short`` of
    tests/models/test_linear_dynamics.py, of mean 3 and −1.8, the error is 0.27 at N = 1 000 and 0.25 at 4 000; with a
    kernel that is 0 between windows of different steps it is 0.31 and 0.16.
    """
    model = LinearDynamics((2, 1), 1)
    with torch.no_grad():
        model.dynamics.fill_(0.8)
        model.loadings.fill_(1.0)
        model.initial_mean.fill_(8.0)
        model.log_initial_scale.fill_(-0.7)
        model.log_process_scale.fill_(-0.3)
        model.log_observation_scale.fill_(-0.3)
    kernel, windows = functools.partial(PolynomialKernel, degree=4), Windows(model, 1, 1)
    few, many = (
        relative_error(model, model.log_marginal, kernel, 0.1, count, repeats, seed, windows) for count in (1000, 4000)
    )
    assert many <= 0.1
    assert few > 1.5 * many


@pytest.mark.parametrize(
    ("shape", "message"),
    [(None, "no attribute 'event_shape'"), ((8,), r"shape \(8,\)"), ((1, 3), r"T ≥ 2 points")],
)
def test_data_that_are_no_series_are_named(shape: tuple[int, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LinearDynamics(shape)


def test_a_window_that_makes_no_sense_is_named() -> None:
    with pytest.raises(UserError, match=r"model\.window_decay is 0; give a number above 0"):
        Windows(LinearDynamics((4, 2)), 1, 1, decay=0)
    with pytest.raises(UserError, match=r"model\.innovations is -1; give 0"):
        Windows(LinearDynamics((4, 2)), 1, 1, innovations=-1)
    with pytest.raises(UserError, match=r"window\.past is -1"):
        Windows(LinearDynamics((4, 2)), -1, 2)
    with pytest.raises(UserError, match=r"window\.future is 4, but series have 4 points in time; give at most 3"):
        Windows(LinearDynamics((4, 2)), 1, 4)
