"""What we add to the Langevin autoencoder: damped moves, a step that follows its acceptance, q of the chain."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from langevin_autoencoders import autoencoder, scalar, shared


def test_damped_moves_are_langevin_moves_of_the_latents() -> None:
    """z' = z − η ∇V + √(2η) ε for λ → 0, however much the features share; a large λ holds back the small directions."""
    torch.manual_seed(0)
    x, features = torch.rand(4, 1, 8, 8).round().double(), shared(4, 8)
    module = autoencoder(step_size=0.03, moves=1, metropolis=False, damping=1e-12).double()
    z = (features @ module.weight.T).requires_grad_()
    log_joint = module.generative.log_prior(z) + module.generative.likelihood(z).log_prob(x)
    (gradient,) = torch.autograd.grad(-log_joint.sum(), z)
    torch.manual_seed(1)
    noise = torch.randn(1, 2, 4, dtype=torch.float64)[0].T
    torch.manual_seed(1)
    moved = module.move(module.weight[None], features, x).positions[0, 0]
    torch.testing.assert_close(
        features @ moved.T, (z - 0.03 * gradient + 0.06**0.5 * noise).detach(), rtol=1e-5, atol=1e-5
    )
    values, vectors = torch.linalg.eigh(features @ features.T)
    module.damping = 1.0
    by = features @ module.basis(features).T
    lengths = features.square().sum(1).mean()
    torch.testing.assert_close(by, vectors @ torch.diag(values / (values + lengths)) @ vectors.T)


@pytest.mark.slow
def test_step_follows_the_acceptance_between_minibatches_alone() -> None:
    """From one at which all moves, and one at which none is accepted; one that is given stays."""
    accepted: list[float] = []
    for start in (0.01, 3.0):
        module, x = scalar("non-linear", step_size=start, moves=3, acceptance=0.57)
        module = module.double()
        module.log = lambda name, value, **_: accepted.append(float(value)) if "acceptance" in name else None  # type: ignore
        features = torch.nn.functional.normalize(shared(3, 8) - 10, dim=1)
        module.features = lambda _, fixed=features: fixed  # type: ignore[method-assign]
        accepted.clear()
        for _ in range(250):
            module.training_step(x, 0)
        assert abs(sum(accepted[:20]) / 20 - 0.57) > 0.2
        assert abs(sum(accepted[150:]) / 100 - 0.57) < 0.1
    fixed, x = scalar("conjugate", step_size=0.3)
    fixed = fixed.double()
    fixed.features = lambda _: features  # type: ignore[method-assign]
    fixed.training_step(x, 0)
    assert float(fixed.log_step) == pytest.approx(math.log(0.3))


def test_evaluation_can_take_the_mean_and_spread_of_the_chain() -> None:
    """Of a conjugate model with features alike in length: N(c x, σ²/(1.5² + σ²)), σ = 0.8."""
    module, x = scalar("conjugate", step_size=0.1, moves=300, posterior_scale=None)
    module = module.double()
    features = torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64)).Q.T
    module.features = lambda _: features  # type: ignore[method-assign]
    for _ in range(3):  # the first steps count little: those before them weigh 0.1 in the first
        module.training_step(x, 0)
    variance = 0.64 / (1.5**2 + 0.64)
    q = module.posterior(x)
    torch.testing.assert_close(q.location, 1.5 / 0.64 * variance * x, atol=0.15, rtol=0)
    torch.testing.assert_close(q.scale, torch.full((3, 1), variance**0.5).double(), atol=0.05, rtol=0)


def test_minibatches_wider_than_the_features_are_warned_of_once() -> None:
    module, x = autoencoder(), torch.rand(9, 1, 8, 8).round()
    with pytest.warns(UserWarning, match="9 images and the encoder 8 features"):
        module.training_step(x, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.training_step(x, 0)
        autoencoder().training_step(x[:8], 0)


def test_a_minibatch_that_is_no_number_leaves_the_chain_as_it_was() -> None:
    for settings in ({}, {"metropolis": False}, {"damping": 0.1, "acceptance": 0.57}):
        module, x = autoencoder(**settings), torch.full((4, 1, 8, 8), math.nan)
        before = {name: module.get_buffer(name).clone() for name in ("weight", "mean_weight", "spread")}
        module.training_step(x, 0)
        for name, value in before.items():
            assert torch.equal(module.get_buffer(name), value), name


def test_features_can_have_a_learning_rate_of_their_own() -> None:
    groups = autoencoder(learning_rate=1e-3, encoder_learning_rate=1e-5).configure_optimizers().param_groups
    assert {group["name"]: group["lr"] for group in groups} == {"model": 1e-3, "encoder": 1e-5}
