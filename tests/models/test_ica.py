"""Noisy ICA against torch.distributions, quadrature and data of its own making."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from runs import named, trainer
from torch import Tensor

from lightning_alws.contract import check_model
from lightning_alws.errors import UserError
from lightning_alws.generative import Direct, PlugIn
from lightning_alws.kernels import GaussianKernel, MedianKernel
from lightning_alws.learning import AmortisedLearning, Learning
from lightning_alws.metrics.recovery import match_columns
from lightning_alws.models import ICA, IndependentComponents
from lightning_alws.models.ica import SourceFeatures
from lightning_alws.objectives import LogJointError, NaturalParameterError
from lightning_alws.regression import KernelRidge
from lightning_alws.residual import ResidualPlugIn

WEIGHT = torch.tensor([[1.0, 0.3], [-0.2, 1.0], [0.5, -0.5], [0.5, 0.5]], dtype=torch.float64)
OTHER_WEIGHT = torch.tensor([[1.2, -0.2], [0.3, 0.7], [0.2, -0.5], [0.6, 0.7]], dtype=torch.float64)
REGRESSION = functools.partial(
    KernelRidge,
    kernel=functools.partial(MedianKernel, features=functools.partial(SourceFeatures, width=0.5), multiple=2.0),
    ridge=1.0,
)


def small(weight: Tensor = WEIGHT, scale: float = 0.3, **settings) -> IndependentComponents:
    """Two sources, four pixels, in float64."""
    model = IndependentComponents((len(weight),), weight.shape[1], scale=scale, **settings).double()
    model.weight.data = weight.clone()
    return model


def learner(weight: Tensor = WEIGHT, scale: float = 0.3, residual: bool = True, **settings) -> ICA:
    settings.setdefault("regression", REGRESSION)
    module = ICA(2, Learning(**settings), scale=scale, residual=residual, event_shape=(4,)).double()
    module.generative.weight.data = weight.clone()
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    return module


def gradient(value: Tensor, model: torch.nn.Module) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(value, [*model.parameters()], retain_graph=True)])


def log_marginal(model: IndependentComponents, x: Tensor) -> Tensor:
    """log p(x) by Gauss-Legendre quadrature over both latents, panel by panel, none across the prior's kink."""
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(8))
    edges = torch.linspace(-14, 14, 29, dtype=torch.float64)
    middle, half = (edges[1:] + edges[:-1])[:, None] / 2, (edges[1:] - edges[:-1])[:, None] / 2
    z, w = (middle + half * nodes).flatten(), (half * weights).flatten()
    grid, log_weights = torch.cartesian_prod(z, z), torch.outer(w, w).flatten().log()
    likelihood = model.likelihood(grid)
    inner = likelihood.sufficient_statistics(x) @ likelihood.natural_parameters.T - likelihood.log_normaliser
    return (inner + model.log_prior(grid) + log_weights).logsumexp(1)


def test_log_joint_is_that_of_torch_distributions() -> None:
    model = IndependentComponents((3, 2), 4, weight_std=1.0, scale=0.4, scale_rate=0.1).double()
    sleep = model.sleep(20)
    mean = (sleep.z @ model.weight.T).reshape(20, 3, 2)
    prior = torch.distributions.Laplace(0.0, 1.0).log_prob(sleep.z).sum(1)
    conditional = torch.distributions.Normal(mean, model.scale).log_prob(sleep.x).sum((1, 2))
    assert isinstance(sleep.joint, PlugIn)
    torch.testing.assert_close(model.log_prior(sleep.z) + sleep.joint.log_joint, prior + conditional)
    assert model.scale.item() == pytest.approx(0.4)


def test_quadrature_agrees_with_a_wide_sum_over_samples() -> None:
    """The oracle itself: log p(x) by a million draws from the prior."""
    model = small(scale=0.8)
    x = model.sleep(3).x
    likelihood = model.likelihood(model.sample_prior(1_000_000))
    values = likelihood.sufficient_statistics(x) @ likelihood.natural_parameters.T - likelihood.log_normaliser
    estimate = values.logsumexp(1) - np.log(1_000_000)
    torch.testing.assert_close(log_marginal(model, x), estimate, atol=0.02, rtol=0)


@pytest.mark.parametrize("residual", [True, False])
def test_contract_seed_and_a_gradient_for_every_parameter(residual: bool) -> None:
    model = small(residual=residual)
    check_model(model, direct=False)
    check_model(model, direct=True)
    torch.manual_seed(3)
    first = model.sleep(5)
    torch.manual_seed(3)
    again = model.sleep(5)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.z, again.z)
    assert isinstance(model.sleep(5, direct=True).joint, Direct)
    module = learner(residual=residual, sleep_samples=50, kernel_objective=NaturalParameterError(), centring=1.0)
    module.training_step(first.x, 0).backward()
    without = [name for name, p in module.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert without == []


def test_linear_posterior_is_exact_under_a_normal_prior() -> None:
    model = small()
    gain, covariance = model.linear_posterior()
    marginal = 2 * WEIGHT @ WEIGHT.T + 0.09 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(gain, torch.linalg.solve(marginal, 2 * WEIGHT).T)
    torch.testing.assert_close(covariance, 2 * torch.eye(2, dtype=torch.float64) - 2 * gain @ WEIGHT)


def test_reference_is_the_expectation_of_the_likelihood_under_the_linear_posterior() -> None:
    """Against a million draws from it, values and gradients."""
    model = small()
    joint = model.sleep(4).joint
    assert isinstance(joint, ResidualPlugIn)
    x = model.sleep(1).x
    gain, covariance = model.linear_posterior()
    z = torch.distributions.MultivariateNormal(x[0] @ gain.T, covariance).sample((1_000_000,))
    likelihood = model.likelihood(z)
    parameters, normaliser = joint.reference.expectation(x)
    torch.testing.assert_close(parameters[0], likelihood.natural_parameters.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(normaliser[0], likelihood.log_normaliser.mean(), rtol=0, atol=0.01)
    torch.testing.assert_close(
        gradient(normaliser[0], model), gradient(likelihood.log_normaliser.mean(), model), rtol=3e-3, atol=0.05
    )


def test_residual_form_adds_at_the_observation_what_it_subtracts_at_the_samples() -> None:
    """The definition, term by term; and with weights that pick a sleep sample's own x, it is the plain prediction."""
    model = small()
    sleep = model.sleep(6)
    joint, x = sleep.joint, model.sleep(3).x
    assert isinstance(joint, ResidualPlugIn)
    plain = PlugIn(joint.x, joint.likelihood, None)
    weights = torch.randn(6, 3, dtype=torch.float64)

    def reference(at: Tensor, put_in: Tensor) -> Tensor:
        parameters, normaliser = joint.reference.expectation(at)
        return joint.likelihood.sufficient_statistics(put_in) @ parameters.T - normaliser

    expected = plain.expectation(weights, x) + reference(x, x).diagonal()
    expected = expected - (reference(joint.x, x) * weights.T).sum(1)
    torch.testing.assert_close(joint.expectation(weights, x), expected)
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(joint.expectation(eye, joint.x), plain.expectation(eye, joint.x))
    torch.testing.assert_close(joint.expectation(eye, joint.x), joint.log_joint)
    detached = joint.detach()
    assert not detached.expectation(weights, x).requires_grad
    torch.testing.assert_close(joint[:4].expectation(weights[:4], x), sleep[:4].joint.expectation(weights[:4], x))


def relative_error(count: int, repeats: int, residual: bool = True) -> float:
    """RMS over repeats of ‖estimate − exact‖ / ‖exact‖ of the gradient of the mean log p(x) over data of another θ.

    The other θ spreads the data no wider than the model's own samples: with filters 1.3 times as long, some of the
    hundred observations lie where there are hardly any samples, and a bias of 2 % of the gradient is left there at
    1 000 samples as at 4 000.
    """
    torch.manual_seed(1)
    x = small(OTHER_WEIGHT, 0.2).sleep(100).x
    module = learner(residual=residual, sleep_samples=count)
    exact = gradient(log_marginal(module.generative, x).mean(), module.generative)
    estimates = [gradient(-module.training_step(x, 0), module.generative) for _ in range(repeats)]
    return float((torch.stack(estimates) - exact).square().sum(1).mean().sqrt() / exact.norm())


@pytest.mark.slow
def test_error_of_the_gradient_falls_with_the_number_of_sleep_samples() -> None:
    few, many = relative_error(500, 20), relative_error(2000, 8)
    assert few > 1.5 * many
    assert many < 0.1
    assert relative_error(500, 5, residual=False) > 2 * few


@pytest.mark.slow
def test_error_of_the_gradient_at_four_thousand_samples() -> None:
    few, many = relative_error(1000, 20), relative_error(4000, 20)
    assert few > 1.5 * many
    assert many < 0.1


@pytest.mark.slow
def test_filters_and_noise_of_its_own_data_are_recovered() -> None:
    """From filters rotated by 0.4 rad, a fifth too short, and a noise scale half too large."""
    x = small(OTHER_WEIGHT, 0.2).sleep(5000).x.float()
    regression = functools.partial(REGRESSION, ridge=0.1)
    learning = Learning(sleep_samples=200, held_out=500, regression=regression, centring=1.0, averaging=0.98)
    module = ICA(2, learning, scale=0.3, scale_rate=0.3, event_shape=(4,))
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    rotation = torch.tensor([[0.921, -0.389], [0.389, 0.921]])
    module.generative.weight.data = 0.8 * OTHER_WEIGHT.float() @ rotation
    assert match_columns(module.generative.filters, OTHER_WEIGHT).cosines.abs().min() < 0.9
    optimiser = torch.optim.Adam(module.generative.parameters(), 0.01)
    for _ in range(240):
        loss = module.training_step(x[torch.randint(len(x), (500,))], 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        module.averaged.update_parameters(module.generative)
    learnt = module.evaluation_model
    matching = match_columns(learnt.filters, OTHER_WEIGHT)
    assert matching.cosines.abs().min() > 0.98
    lengths = learnt.filters.detach().norm(dim=0)[matching.columns].double() / OTHER_WEIGHT.norm(dim=0)
    torch.testing.assert_close(lengths, torch.ones(2, dtype=torch.float64), rtol=0, atol=0.1)
    assert learnt.scale.item() == pytest.approx(0.2, rel=0.1)


def test_scale_rate_slows_the_noise_scale_alone() -> None:
    moved = {}
    for rate in (1.0, 0.1):
        model = small(scale_rate=rate)
        optimiser = torch.optim.Adam(model.parameters(), 0.01)
        before = named(model)
        (-model.sleep(50, direct=True).joint.log_joint.mean() + 10 * model.log_scale).backward()
        log_scale = model.log_scale.item()
        optimiser.step()
        moved[rate] = abs(model.log_scale.item() - log_scale)
        assert not torch.equal(before["weight"], model.weight)
    assert moved[1.0] == pytest.approx(0.01, rel=1e-3)
    assert moved[0.1] == pytest.approx(0.001, rel=1e-3)


def test_noise_scale_is_held_for_the_steps_given(tmp_path) -> None:
    scales = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest) -> None:
            scales.append(pl_module.generative.scale.item())

    learning = Learning(sleep_samples=40, held_out=20, regression=REGRESSION, learning_rate=0.1)
    module = ICA(2, learning, scale=0.3, scale_held=3, event_shape=(4,)).double()
    before = module.generative.weight.clone()
    data = torch.utils.data.DataLoader(small(OTHER_WEIGHT, 0.2).sleep(50).x, batch_size=10)
    trainer(tmp_path, [Watch()], max_steps=5).fit(module, data)
    assert scales[:3] == pytest.approx([0.3] * 3)
    assert abs(scales[3] - 0.3) > 0.01
    assert not torch.equal(before, module.generative.weight)


def test_features_are_sources_and_their_saturated_values_of_the_model_as_it_is_now() -> None:
    module = learner()
    features = module.regression.kernel.network
    x = module.generative.sleep(20_000).x
    standardised, saturated = features(x).chunk(2, dim=1)
    torch.testing.assert_close(standardised.std(0), torch.ones(2, dtype=torch.float64), atol=0.05, rtol=0)
    assert saturated.abs().max() <= 1
    assert (saturated.sign() == standardised.sign()).all()
    with torch.no_grad():
        module.generative.weight.mul_(-1)
    torch.testing.assert_close(features(x), torch.cat([-standardised, -saturated], 1))
    assert "regression.kernel.network._model" not in module.state_dict()
    assert [name for name in module.state_dict() if "network" in name] == []


def test_run_in_a_trainer_and_reload(tmp_path) -> None:
    from datamodules import ICAMixtures

    data = ICAMixtures(
        patch_size=4, num_sources=3, num_patches=200, train_size=200, validation_size=20, test_size=20, batch_size=50
    )
    learning = Learning(sleep_samples=40, held_out=20, regression=REGRESSION, centring=1.0, averaging=0.9)
    module = ICA(3, learning, event_shape=(16,))
    run = trainer(tmp_path, max_steps=4)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "model.ckpt")
    fresh = ICA(3, learning, event_shape=(16,))
    fresh.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(fresh.generative.weight, module.generative.weight)


@pytest.mark.parametrize("objective", [LogJointError(), NaturalParameterError()])
def test_kernel_can_be_trained_on_the_residuals(objective) -> None:
    module = learner(sleep_samples=60, held_out=40, kernel_objective=objective)
    module.training_step(module.generative.sleep(10).x, 0).backward()
    assert module.regression.log_ridge.grad is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"event_shape": None}, "'event_shape'"),
        ({"latent_dim": 0}, "model.latent_dim is 0"),
        ({"scale": 0.0}, "model.scale is 0"),
        ({"scale_held": -1}, "scale_held is -1"),
        ({"scale_rate": -1.0}, "model.scale_rate is -1"),
        ({"weight_std": float("inf")}, "model.weight_std is inf"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ICA(**({"event_shape": (4,)} | settings))


def test_features_of_another_model_are_refused() -> None:
    regression = functools.partial(
        KernelRidge, kernel=functools.partial(GaussianKernel, features=SourceFeatures, bandwidth=1.0)
    )
    module = AmortisedLearning(small(), Learning(sleep_samples=20, regression=regression))
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    with pytest.raises(UserError, match="only the model ICA has"):
        module.training_step(torch.zeros(2, 4, dtype=torch.float64), 0)
