"""AL-NN: the gradient through unrolled training against finite differences and, where it is linear, least squares."""

from __future__ import annotations

import pytest
import torch
from image_methods import ENCODER, SMALL, built, images
from models import LearntPrior, LinearGaussian, flat_gradient
from torch import Tensor, nn

from lightning_alws.baselines import NetworkLearning
from lightning_alws.baselines.al_nn import Regressor, StandardUnits, network_expectation, unrolled
from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel, Sleep
from lightning_alws.networks import MLPFeatures


def curved(event_shape: tuple[int, ...] = (3,)) -> Regressor:
    torch.manual_seed(0)
    network = Regressor(MLPFeatures(event_shape, [], 8), event_shape)
    network.features[1] = nn.Tanh()  # finite differences must meet no kink
    return network.double()


def at(model: LatentVariableModel, sleep: Sleep) -> Tensor:
    """log p_θ(z_n, x_n) of samples drawn before, at the model's present θ."""
    log_prob = model.likelihood(sleep.z).log_prob(sleep.x)
    return log_prob + model.log_prior(sleep.z) if model.prior_is_learnt else log_prob


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("make", [LinearGaussian, LearntPrior])
def test_gradient_through_the_steps_is_that_of_finite_differences(make, steps: int) -> None:
    model = make()
    sleep, query = model.sleep(12), model.sleep(3).x
    network = curved(tuple(query.shape[1:]))
    units = StandardUnits(at(model, sleep))

    def objective() -> Tensor:
        # The units are constants in θ: those of the first call stand.
        standard = units.of(at(model, sleep))
        trained = unrolled(network, sleep.x, standard, steps, 0.2)
        constant = (standard - torch.func.functional_call(network, trained, (sleep.x,))).mean()
        return units.inverse(torch.func.functional_call(network, trained, (query,)) + constant).sum()

    taken = flat_gradient(network_expectation(network, sleep.x, at(model, sleep), query, steps, 0.2).sum(), model)
    step, differences = 1e-5, []
    for parameter in model.parameters():
        for index in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * step
                values.append(objective().detach())
                with torch.no_grad():
                    parameter.view(-1)[index] -= sign * step
            differences.append((values[0] - values[1]) / (2 * step))
    assert float(taken.norm()) > 1e-3
    torch.testing.assert_close(taken, torch.stack(differences), rtol=1e-5, atol=1e-7)


def test_unrolled_steps_are_gradient_descent() -> None:
    """As torch's own optimiser makes them, on a copy; the network itself stays as it was."""
    network, copy = curved(), curved()
    x, targets = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    trained = unrolled(network, x, targets, 3, 0.1)
    optimiser = torch.optim.SGD(copy.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        (copy(x) - targets).var(correction=0).backward()
        optimiser.step()
    for name, parameter in copy.named_parameters():
        torch.testing.assert_close(trained[name].detach(), parameter.detach())
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), curved().parameters(), strict=True))


def whitened(model: LinearGaussian, count: int) -> tuple[Sleep, Tensor]:
    """Sleep samples, and their observations in coordinates where gradient descent on a linear f takes few steps."""
    sleep = model.sleep(count)
    centred = sleep.x - sleep.x.mean(0)
    return sleep, centred @ torch.linalg.inv(torch.linalg.cholesky(centred.T @ centred / count)).T


def test_linear_and_converged_it_is_least_squares() -> None:
    """f(x) = ⟨w, x⟩ + c, steps until nothing moves: value and gradient are those of W = A(AᵀA)⁻¹a(x*), a = (x, 1).

    The gradient in θ is then that of direct kernel regression with a linear kernel, intercept and no ridge.
    """
    model = LinearGaussian()
    sleep, x = whitened(model, 30)
    query = torch.randn(4, 3, dtype=torch.float64)
    network = Regressor(nn.Identity(), (3,), rectified=False).double()
    taken = network_expectation(network, x, sleep.joint.log_joint, query, 60, 0.25)
    design, at_query = (torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1) for rows in (x, query))
    weights = design @ torch.linalg.solve(design.T @ design, at_query.T)
    expected = weights.T @ sleep.joint.log_joint
    torch.testing.assert_close(taken, expected)
    for one, other in zip(taken, expected, strict=True):
        torch.testing.assert_close(flat_gradient(one, model), flat_gradient(other, model))


def test_few_steps_shrink_the_gradient() -> None:
    """With a linear network all but the constant's part grows, by 1 − (1 − 2α)^M, to that of least squares."""
    model = LinearGaussian()
    sleep, x = whitened(model, 30)
    network = Regressor(nn.Identity(), (3,), rectified=False).double()

    def gradient(steps: int, rate: float) -> Tensor:
        values = network_expectation(network, x, sleep.joint.log_joint, x[:1], steps, rate)
        return flat_gradient(values[0], model)

    none, converged = gradient(0, 0.25), gradient(60, 0.25)
    torch.testing.assert_close(none, flat_gradient(sleep.joint.log_joint.mean(), model))
    for steps in (1, 5, 40):
        torch.testing.assert_close(gradient(steps, 0.02), none + (1 - 0.96**steps) * (converged - none))


def test_the_loss_gives_each_part_its_own_gradient() -> None:
    """The network's is that of its error on sleep samples alone, the model's that of −mean Ĵ(x*) alone."""
    module, x = built("al_nn"), images(7)
    torch.manual_seed(3)
    module.training_step(x, 0).backward()
    torch.manual_seed(3)
    sleep = module.generative.sleep(module.sleep_samples)
    targets = sleep.joint.log_joint
    standard = (targets - targets.mean()).detach() / targets.detach().std()
    error = (module.network(sleep.x) - standard).var(correction=0)
    settings = (module.inner_steps, module.inner_rate)
    objective = network_expectation(module.network, sleep.x, targets, x, *settings).mean()
    for part, value in ((module.network, error), (module.generative, -objective)):
        taken = torch.cat([parameter.grad.flatten() for parameter in part.parameters()])
        torch.testing.assert_close(taken, flat_gradient(value, part))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sleep_samples": 1}, "model.sleep_samples is 1"),
        ({"inner_steps": 0}, "model.inner_steps is 0"),
        ({"inner_rate": 0.0}, "model.inner_rate is 0"),
    ],
)
def test_settings_that_make_no_sense_are_named(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        NetworkLearning(**({"encoder": ENCODER, **SMALL} | change))
