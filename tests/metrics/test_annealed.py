"""Annealed importance sampling against models whose marginal is known, and the theorems it rests on, in float64."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from models import LinearGaussian
from scipy import stats
from torch import Tensor, nn

from lightning_alws.errors import UserError
from lightning_alws.generative import LatentVariableModel
from lightning_alws.likelihoods import Bernoulli, Gaussian, Likelihood
from lightning_alws.metrics import annealed
from lightning_alws.metrics.annealed import (
    Annealing,
    anneal,
    annealed_log_likelihood,
    schedule,
    simulated_bounds,
    tune,
)
from lightning_alws.metrics.hamiltonian import Move, State, Target, differentiable, leapfrog, transition
from lightning_alws.models.image import ImageGenerator
from lightning_alws.networks import MLPDecoder
from lightning_alws.priors import UniformPrior

CPU = torch.device("cpu")


def move(step: float, rows: int, dim: int) -> Move:
    """One step for all rows, and a mass matrix that is far from the identity."""
    factor = torch.eye(dim).double() + 0.3 * torch.tril(torch.ones(dim, dim).double())
    return Move(torch.full((rows,), step, dtype=torch.float64), factor)


class Curve(LatentVariableModel):
    """z ~ N(0, I₂) or U(0, 1)², five pixels x_d ~ Bernoulli(sigmoid(3 sin(w_d·z + b_d))): log p(x) by a 2-D grid."""

    def __init__(self, uniform: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(3 * torch.randn(2, 5, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))
        self.uniform = UniformPrior(2).double() if uniform else None

    def sample_prior(self, count: int) -> Tensor:
        return torch.randn(count, 2, dtype=torch.float64) if self.uniform is None else self.uniform.sample(count)

    def log_prior(self, z: Tensor) -> Tensor:
        normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        return normal if self.uniform is None else self.uniform.log_prob(z)

    def likelihood(self, z: Tensor) -> Likelihood:
        return Bernoulli(3 * (z @ self.weight + self.bias).sin())

    @torch.no_grad()
    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x), shape (B,), by the midpoint rule."""
        low, high = (-6.0, 6.0) if self.uniform is None else (0.0, 1.0)
        line = low + (high - low) * (torch.arange(200, dtype=torch.float64) + 0.5) / 200
        z = torch.cartesian_prod(line, line)
        grid = self.likelihood(z)
        inner = grid.sufficient_statistics(x) @ grid.natural_parameters.T - grid.log_normaliser
        return (inner + self.log_prior(z)).logsumexp(1) + 2 * math.log((high - low) / 200)


def simulated(model: LatentVariableModel, count: int) -> Tensor:
    with torch.no_grad():
        return model.likelihood(model.sample_prior(count)).sample()


MODELS = {
    "linear": LinearGaussian(),
    "linear, precise": LinearGaussian(3, 6, -3.0),
    "curve": Curve(),
    "curve, uniform prior": Curve(uniform=True),
}


@pytest.mark.parametrize("temperatures", [1, 2, 3, 10, 500])
def test_schedule_runs_from_the_prior_to_the_posterior(temperatures: int) -> None:
    betas = schedule(temperatures)
    assert betas.shape == (temperatures + 1,)
    assert (betas[0], betas[-1]) == (0, 1)
    assert (betas.diff() > 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]
    x, z = simulated(model, 4), model.sample_prior(4)
    with differentiable(model, CPU):
        target = Target(model, x)
        state = target(z)
        for index in range(z.shape[1]):
            shift = torch.zeros_like(z)
            shift[:, index] = 1e-6
            up, down = target(z + shift), target(z - shift)
            for beta in (0.0, 0.3, 1.0):
                difference = (up.log_density(beta) - down.log_density(beta)) / 2e-6
                torch.testing.assert_close(state.slope(beta)[:, index], difference, rtol=1e-5, atol=1e-4)


def test_leapfrog_is_reversible_and_keeps_volume() -> None:
    torch.manual_seed(0)
    model = Curve()
    x, z, momentum = simulated(model, 1), model.sample_prior(1), torch.randn(1, 2).double()
    with differentiable(model, CPU):
        target = Target(model, x)
        end, final = leapfrog(target, target(z), momentum, 0.7, move(0.15, 1, 2), 6)
        back, start = leapfrog(target, end, -final, 0.7, move(0.15, 1, 2), 6)
        torch.testing.assert_close((back.z, -start), (z, momentum), rtol=1e-9, atol=1e-9)
        assert (end.z - z).abs().min() > 0.01  # it moved

        def flow(point: Tensor) -> Tensor:
            state, last = leapfrog(target, target(point[None, :2]), point[None, 2:], 0.7, move(0.15, 1, 2), 6)
            return torch.cat([state.z[0], last[0]])

        point = torch.cat([z[0], momentum[0]])
        columns = [(flow(point + 1e-5 * unit) - flow(point - 1e-5 * unit)) / 2e-5 for unit in torch.eye(4).double()]
        assert float(torch.linalg.det(torch.stack(columns))) == pytest.approx(1, abs=1e-6)


def test_energy_error_falls_with_the_square_of_the_step() -> None:
    torch.manual_seed(1)
    model = Curve()
    x, z, momentum = simulated(model, 200), model.sample_prior(200), torch.randn(200, 2).double()
    errors = []
    with differentiable(model, CPU):
        target = Target(model, x)
        state = target(z)
        for steps in (16, 32):
            end, final = leapfrog(target, state, momentum, 1.0, move(0.6 / steps, 200, 2), steps)
            energy = [s.log_density(1.0) - 0.5 * p.square().sum(1) for s, p in ((state, momentum), (end, final))]
            errors.append((energy[1] - energy[0]).square().mean().sqrt())
    assert float(errors[0] / errors[1]) == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("step", [0.08, 0.27])
def test_transitions_leave_their_target_invariant(step: float) -> None:
    """Exact posterior draws, moved 15 times with few or two thirds of the moves refused, stay posterior draws."""
    torch.manual_seed(2)
    model = LinearGaussian(1, 2, -1.5)
    count, beta = 20_000, 0.6
    x = simulated(model, 1)
    weight, precision = model.weight.detach(), float((-2 * model.log_scale.detach()).exp())
    variance = 1 / (1 + beta * precision * float(weight.square().sum()))
    mean = variance * beta * precision * float(((x - model.bias.detach()) @ weight).squeeze())
    with differentiable(model, CPU):
        target = Target(model, x.expand(count, -1))
        state = target(mean + variance**0.5 * torch.randn(count, 1).double())
        for _ in range(15):
            state, acceptance = transition(target, state, beta, move(step, count, 1), 3)
    low, high = (0.2, 0.5) if step > 0.2 else (0.9, 0.999)
    assert low < acceptance.mean() < high
    standard = ((state.z - mean) / variance**0.5).squeeze()
    assert stats.kstest(standard.numpy(), "norm").pvalue > 1e-3


def test_transitions_from_anywhere_reach_their_target() -> None:
    torch.manual_seed(3)
    model = Curve(uniform=True)
    x = simulated(model, 1)
    with differentiable(model, CPU):
        target = Target(model, x.expand(4000, -1))
        state = target(torch.full((4000, 2), 0.5).double())
        for _ in range(60):
            state, _ = transition(target, state, 1.0, move(0.1, 4000, 2), 4)
    assert ((state.z > 0) & (state.z < 1)).all()
    with torch.no_grad():
        line = (torch.arange(400).double() + 0.5) / 400
        z = torch.cartesian_prod(line, line)
        weights = model.likelihood(z).log_prob(x.expand(len(z), -1)).softmax(0)
    exact = (weights[:, None] * z).sum(0)
    spread = ((weights[:, None] * z.square()).sum(0) - exact.square()).sqrt()
    assert ((state.z.mean(0) - exact).abs() < 4 * spread / 4000**0.5).all()


def test_refused_moves_keep_the_whole_state() -> None:
    """With a step far too long all are refused; where a trajectory overflows, too."""
    torch.manual_seed(0)
    model = LinearGaussian(2, 3, -3.0)
    x, z = simulated(model, 10), model.sample_prior(10)
    with differentiable(model, CPU):
        target = Target(model, x)
        state = target(z)
        for step in (3.0, 1e200):
            moved, acceptance = transition(target, state, 1.0, move(step, 10, 2), 5)
            assert acceptance.max() < 1e-6
            for name in State.__dataclass_fields__:
                assert torch.equal(getattr(moved, name), getattr(state, name))


@pytest.mark.parametrize(
    "name",
    [
        "linear",
        pytest.param("curve", marks=pytest.mark.slow),
        pytest.param("curve, uniform prior", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("temperatures", [1, 3])
def test_mean_weight_is_the_likelihood_however_few_the_temperatures(name: str, temperatures: int) -> None:
    """E[w] = p(x): exact, not only in the limit; over many chains, within their standard error."""
    torch.manual_seed(4)
    model = MODELS[name]
    x = simulated(model, 6)
    with torch.no_grad():
        truth = model.log_marginal(x)  # type: ignore[operator]
    settings = Annealing(40_000, temperatures, 2)
    estimate = annealed_log_likelihood(model, x, settings, 120_000)
    assert estimate.effective_samples.min() > 30  # otherwise its standard error says nothing
    error = (1 / estimate.effective_samples - 1 / settings.chains).sqrt()
    scores = (estimate.log_likelihood - truth) / error
    assert scores.abs().max() < 4
    assert scores.square().mean() < 3


def test_mean_inverse_weight_backwards_is_the_inverse_likelihood() -> None:
    """E[1/w] = 1/p(x) over exact posterior draws, again for three temperatures.

    1/w has moments only where log p(x|z) is bounded from below: the curve's is.
    """
    torch.manual_seed(5)
    model = Curve()
    x = simulated(model, 1)
    with torch.no_grad():
        truth = model.log_marginal(x)
        proposals = model.sample_prior(1_000_000)  # posterior draws among a great many of the prior
        weights = model.likelihood(proposals).log_prob(x.expand(len(proposals), -1)).exp()
        z = proposals[torch.rand_like(weights) < weights / weights.max()][:40_000]
    with differentiable(model, CPU):
        moves = [Move(one.step.expand(len(z)), one.factor) for one in tune(model, x, Annealing(1, 3, 2))]
        ended = anneal(Target(model, x.expand(len(z), -1)), z, moves, 2, backwards=True)
    ratio = (truth - ended.log_weights).exp()
    error = float(ratio.std()) / len(z) ** 0.5
    assert error < 0.05
    assert abs(float(ratio.mean()) - 1) < 4 * error


def test_where_the_chains_end_has_the_posteriors_moments_by_their_weights() -> None:
    """E[w z] / E[w] and E[w zzᵀ] / E[w] against the closed form; without the weights they are others."""
    torch.manual_seed(6)
    model = LinearGaussian()
    x = simulated(model, 1)
    with torch.no_grad():
        precision = model.weight.T @ model.weight * (-2 * model.log_scale).exp() + torch.eye(2, dtype=x.dtype)
        covariance = torch.linalg.inv(precision)
        mean = covariance @ model.weight.T @ (x[0] - model.bias) * (-2 * model.log_scale).exp()
    count = 20_000
    with differentiable(model, CPU):
        moves = [one.repeated(count) for one in tune(model, x, Annealing(1, 3, 2))]
        ended = anneal(Target(model, x.expand(count, -1)), model.sample_prior(count), moves, 2)
    values = torch.cat([ended.state.z, ended.state.z[:, :, None].mul(ended.state.z[:, None]).flatten(1)], dim=1)
    truth = torch.cat([mean, (covariance + mean[:, None] * mean).flatten()])

    def errors(weights: Tensor) -> Tensor:
        """Of the weighted means, in standard errors."""
        found = weights @ values
        return (found - truth) / (weights.square() @ (values - found).square()).sqrt()

    assert errors(ended.log_weights.softmax(0)).abs().max() < 4
    assert errors(torch.full((count,), 1 / count, dtype=x.dtype)).abs().max() > 8


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_bounds_enclose_the_truth_on_simulated_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On average over data, where there are so few temperatures that there is something to enclose; with more they
    meet."""
    torch.manual_seed(6)
    model = MODELS[name]
    seen = []
    original = annealed.tune
    monkeypatch.setattr(annealed, "tune", lambda model, x, settings: seen.append(x) or original(model, x, settings))
    gaps = []
    for temperatures in (6, 60):
        seen.clear()
        bounds = simulated_bounds(model, 300, Annealing(2, temperatures, 3))
        with torch.no_grad():
            truth = model.log_marginal(torch.cat(seen))  # type: ignore[operator]
        below, above = truth - bounds.lower.log_likelihood, bounds.upper.log_likelihood - truth
        for side in (below, above):
            assert side.mean() > -3 * side.std() / len(side) ** 0.5
        torch.testing.assert_close(bounds.gap, below + above)
        gaps.append(float(bounds.gap.mean()))
    assert gaps[0] > 0.1
    # Between walls the sine's several modes stay apart: there, only more chains help quickly.
    assert gaps[1] < (0.7 if "uniform" in name else 0.4) * gaps[0]


def test_many_temperatures_give_each_log_likelihood() -> None:
    """σ = e⁻³: of 80 prior samples, as many as there are gradients for one temperature, none would count."""
    torch.manual_seed(7)
    model = MODELS["linear, precise"]
    x = simulated(model, 30)
    estimate = annealed_log_likelihood(model, x, Annealing(16, 200, 3))
    assert estimate.log_likelihood.dtype == estimate.effective_samples.dtype == torch.float64
    with torch.no_grad():
        truth = model.log_marginal(x)  # type: ignore[operator]
    assert (estimate.log_likelihood - truth).abs().max() < 1
    assert (estimate.log_likelihood - truth).square().mean().sqrt() < 0.35
    assert estimate.effective_samples.min() > 4


def test_the_pilot_finds_the_posteriors_shape() -> None:
    """Whitened by the mass matrix, every f_β of a stretched Gaussian is nearly round; moves are mostly accepted."""
    torch.manual_seed(8)
    model = LinearGaussian(8, 16, -2.0)
    x = simulated(model, 30)
    precision = float((-2 * model.log_scale.detach()).exp()) * model.weight.detach().T @ model.weight.detach()
    with differentiable(model, CPU):
        moves = tune(model, x, Annealing(1, 100, 3))
    assert len(moves) == 99
    for t in (50, 75, 99):
        exact = torch.eye(8).double() + schedule(100)[t] * precision
        scales = torch.linalg.eigvalsh(moves[t - 1].factor @ exact @ moves[t - 1].factor.T)
        before = torch.linalg.eigvalsh(exact)
        assert scales[-1] / scales[0] < 0.35 * before[-1] / before[0]
        assert 0.3 < scales[0] < scales[-1] < 4
    estimate = annealed_log_likelihood(model, x, Annealing(4, 100, 3))
    assert estimate.acceptance.min() > 0.75


def test_steps_are_each_observations_own() -> None:
    """Where one observation is precise and another says little, their posteriors' widths differ by far."""

    class Uneven(LinearGaussian):
        def likelihood(self, z: Tensor) -> Likelihood:
            return Gaussian(torch.cat([z * 40 * (z[:, :1] > 0), z * 0.1], 1), torch.zeros(()).double())

    torch.manual_seed(9)
    model = Uneven(1, 2)
    x = torch.tensor([[40.0, 0.1], [0.0, -0.1]]).double().repeat(4, 1)
    with differentiable(model, CPU):
        moves = tune(model, x, Annealing(1, 100, 1))
    assert moves[-1].step.shape == (8,)
    assert moves[-1].step[::2].mean() < 0.85 * moves[-1].step[1::2].mean()


def test_image_model_in_single_precision() -> None:
    """The decoder the application uses, in float32, against a great many prior samples."""
    torch.manual_seed(10)
    model = ImageGenerator((1, 4, 4), "bernoulli", 2, lambda dim, shape: MLPDecoder(dim, shape, [16]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        x = simulated(model, 20)
        truth = torch.stack(
            [model.likelihood(z).log_prob(row.expand(len(z), -1, -1, -1)).double().logsumexp(0) - math.log(len(z))
             for row in x for z in [model.sample_prior(40_000)]]
        )  # fmt: skip
    estimate = annealed_log_likelihood(model, x, Annealing(16, 60, 3), 128)
    assert (estimate.log_likelihood - truth).abs().mean() < 0.1
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_in_inference_mode_on_tensors_made_there() -> None:
    model = LinearGaussian()
    with torch.inference_mode():
        x = simulated(model, 3) + 0.0
        assert x.is_inference()
        estimate = annealed_log_likelihood(model, x, Annealing(4, 5, 2))
        bounds = simulated_bounds(model, 3, Annealing(4, 5, 2))
        assert torch.is_inference_mode_enabled()
    assert estimate.log_likelihood.isfinite().all()
    assert bounds.gap.isfinite().all()
    assert model.weight.requires_grad


def test_parameters_are_thawed_after_an_error_and_frozen_ones_stay_so() -> None:
    model = LinearGaussian()
    model.bias.requires_grad_(False)
    frozen = []
    with contextlib.suppress(ZeroDivisionError), differentiable(model, CPU):
        frozen.append(not model.weight.requires_grad)
        raise ZeroDivisionError
    assert frozen == [True]
    assert model.weight.requires_grad
    assert not model.bias.requires_grad


def test_chunks_and_seeds() -> None:
    """The same seed, the same figure; an observation alone in its chunk is as good as with others."""
    model, settings = LinearGaussian(), Annealing(8, 60, 2)
    torch.manual_seed(11)
    x = simulated(model, 3)
    estimates = []
    for size in (1000, 1000, 17):
        torch.manual_seed(12)
        estimates.append(annealed_log_likelihood(model, x, settings, size))
    assert torch.equal(estimates[0].log_likelihood, estimates[1].log_likelihood)
    for other in estimates[2:]:
        assert other.log_likelihood.shape == other.acceptance.shape == (3,)
        assert (other.log_likelihood - estimates[0].log_likelihood).abs().max() < 1.5


@pytest.mark.parametrize("name", ["chains", "temperatures", "leapfrog_steps"])
def test_senseless_settings_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"annealing.{name} is 0"):
        Annealing(**{name: 0})
    with pytest.raises(UserError, match="annealing.chunk_size is 0"):
        annealed_log_likelihood(LinearGaussian(), torch.zeros(1, 3).double(), Annealing(1, 1, 1), 0)
