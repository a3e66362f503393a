"""Reweighted wake-sleep: its gradients are the definition's, on models small enough to enumerate."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from gradient_error import relative_error
from image_methods import ENCODER, SHAPE, images, log_marginal
from runs import Images, trainer
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal

from callbacks import LogLikelihood, SampleGrid
from lightning_alws.baselines import ReweightedWakeSleep
from lightning_alws.baselines.lower_bound import log_joint
from lightning_alws.baselines.rws import BernoulliProposal, wake_loss
from lightning_alws.errors import UserError
from lightning_alws.kernels import MedianKernel
from lightning_alws.learning import Learning
from lightning_alws.models import ImageModel
from lightning_alws.networks import MLPDecoder
from lightning_alws.priors import BernoulliPrior, GaussianMixturePrior, StandardNormal

LATENTS = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 3)  # every z of three binary latents
IMAGES = torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * 6).view(-1, *SHAPE)  # every image
PRIORS = {"real": StandardNormal, "binary": BernoulliPrior}


def method(prior: str = "binary", **settings: Any) -> ReweightedWakeSleep:
    """Three latents, six pixels, parameters of order one, float64; logs nothing."""
    torch.manual_seed(0)
    decoder = functools.partial(MLPDecoder, hidden=[6])
    module = ReweightedWakeSleep(
        latent_dim=3,
        decoder=decoder,
        encoder=ENCODER,
        prior=PRIORS[prior],
        image_shape=SHAPE,
        likelihood="bernoulli",
        **settings,
    ).double()
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2).add_(0.2 * torch.randn_like(parameter))
    return module


def flat(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    """The gradient as one vector, zero where there is none."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )


def theta(module: ReweightedWakeSleep) -> list[Tensor]:
    return [*module.generative.parameters()]


def phi(module: ReweightedWakeSleep) -> list[Tensor]:
    return [*module.encoder.parameters(), *module.heads.parameters()]


def law(module: ReweightedWakeSleep, x: Tensor) -> Independent:
    """q(z|x) as torch has it."""
    output = module.heads(module.encoder(x))
    if module.binary:
        return Independent(Bernoulli(logits=output), 1)
    location, log_scale = output.chunk(2, -1)
    return Independent(Normal(location, log_scale.exp()), 1)


def joint(module: ReweightedWakeSleep, z: Tensor, x: Tensor) -> Tensor:
    """log p(z, x) of one latent vector and one image, by torch."""
    prior = Bernoulli(logits=module.generative.prior.logits) if module.binary else Normal(0.0, 1.0)
    mean = 1e-4 + (1 - 2e-4) * module.generative.decoder(z[None])[0].sigmoid()
    return prior.log_prob(z).sum() + Bernoulli(mean).log_prob(x).sum()


@pytest.mark.parametrize("phases", ["wake", "sleep", "both"])
@pytest.mark.parametrize("prior", PRIORS)
def test_gradients_are_the_definitions_for_the_draws_at_hand(prior: str, phases: str) -> None:
    """Against sums over images and draws, one by one, with the weights as plain numbers."""
    module, x = method(prior, samples=4, phi=phases), images(3)
    torch.manual_seed(5)
    loss = module.training_step(x, 0)
    torch.manual_seed(5)
    z = module.posterior(x, 4).sample().detach()
    dreamt = module.dream(3) if phases != "wake" else None
    to_theta, to_phi = 0.0, 0.0
    for b in range(3):
        log_p = torch.stack([joint(module, z[k, b], x[b]) for k in range(4)])
        log_q = torch.stack([law(module, x[b : b + 1]).log_prob(z[k, b])[0] for k in range(4)])
        ratio = (log_p - log_q).detach().exp()
        weights = (ratio / ratio.sum()).tolist()
        assert max(weights) < 0.99
        for k in range(4):
            to_theta = to_theta - weights[k] * flat(log_p[k], theta(module)) / 3
            if phases != "sleep":
                to_phi = to_phi - weights[k] * flat(log_q[k], phi(module)) / 3
        if dreamt is not None:
            to_phi = to_phi - flat(law(module, dreamt[1][b : b + 1]).log_prob(dreamt[0][b])[0], phi(module)) / 3
    torch.testing.assert_close(flat(loss, theta(module)), to_theta)
    torch.testing.assert_close(flat(loss, phi(module)), to_phi)


def test_wake_gradients_become_exact_as_draws_grow() -> None:
    """θ: ∇ log p(x); φ: Σ_z p(z|x) ∇ log q(z|x). Both by enumeration; with few draws, both are biased."""
    module, x = method(phi="wake"), images(2)
    exact_theta = flat(-log_marginal(module.generative, x).mean(), theta(module))
    everywhere = LATENTS[:, None].expand(-1, 2, -1)
    log_p, log_q = log_joint(module.generative, everywhere, x), module.posterior(x).log_prob(everywhere)
    exact_phi = flat(-(log_p.detach().softmax(0) * log_q).sum(0).mean(), phi(module))
    errors = []
    for samples in (2, 200_000):
        # Many repetitions of few draws: their mean has the bias of few and the variance of many.
        repeats = 200_000 // samples
        z = module.posterior(x, 200_000).sample().view(samples, repeats, 2, 3).flatten(1, 2)
        many = x.repeat(repeats, 1, 1, 1)
        log_p, log_q = log_joint(module.generative, z, many), module.posterior(many).log_prob(z)
        loss = wake_loss(log_p, log_q, with_phi=True)
        errors.append(
            [
                float((flat(loss, p) - e).norm() / e.norm())
                for p, e in ((theta(module), exact_theta), (phi(module), exact_phi))
            ]
        )
    assert max(errors[1]) < 0.02
    assert min(errors[0]) > 0.1


def test_sleep_gradient_is_the_expectation_under_the_model() -> None:
    """Σ_{z, x} p(z, x) ∇ log q(z|x) over all 8 × 64 pairs, against one hundred thousand dreams."""
    module = method(phi="sleep")
    z, x = LATENTS.repeat_interleave(len(IMAGES), 0), IMAGES.repeat(len(LATENTS), 1, 1, 1)
    with torch.no_grad():
        probability = log_joint(module.generative, z[None], x)[0].exp()
    torch.testing.assert_close(probability.sum(), torch.ones((), dtype=torch.float64))
    exact = flat(-(probability * module.posterior(x).log_prob(z[None])[0]).sum(), phi(module))
    torch.manual_seed(1)
    drawn = flat(module.sleep_loss(*module.dream(100_000)), phi(module))
    assert float((drawn - exact).norm() / exact.norm()) < 0.03
    # Weighted as the enumeration says, the loss itself gives the same.
    weighted = -(probability * law(module, x).log_prob(z)).sum()
    torch.testing.assert_close(flat(weighted, phi(module)), exact)


def test_binary_proposal_is_torchs() -> None:
    logits = torch.randn(1, 4, 3, dtype=torch.float64)
    q, reference = BernoulliProposal(logits.expand(50_000, -1, -1)), Independent(Bernoulli(logits=logits), 1)
    z = q.sample()
    torch.testing.assert_close(q.log_prob(z), reference.log_prob(z))
    torch.testing.assert_close(z.mean(0), logits[0].sigmoid(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "phases", ["wake", pytest.param("sleep", marks=pytest.mark.slow), pytest.param("both", marks=pytest.mark.slow)]
)
def test_training_learns_model_and_posterior(phases: str) -> None:
    """Data of another model of the same class: log p(x) rises towards theirs, q towards the posterior."""
    torch.manual_seed(2)
    source = method().generative
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.5)
        truth = torch.stack([log_marginal(source, x[None]) for x in IMAGES])[:, 0].exp()
    module = method(phi=phases, samples=5, learning_rate=0.02)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))

    def divergences() -> tuple[float, float]:
        """KL(source ‖ model), and KL(p(z|x) ‖ q(z|x)) at the data, by enumeration."""
        with torch.no_grad():
            z = LATENTS[:, None].expand(-1, 64, -1)
            log_p, log_q = log_joint(module.generative, z, IMAGES), module.posterior(IMAGES).log_prob(z)
            log_posterior = log_p.log_softmax(0)
            gap = truth @ (truth.log() - log_p.logsumexp(0))
            return float(gap), float(truth @ (log_posterior.exp() * (log_posterior - log_q)).sum(0))

    before, optimiser = divergences(), module.configure_optimizers()
    for _ in range(300):
        x = IMAGES[torch.multinomial(truth, 200, replacement=True)]
        optimiser.zero_grad()
        module.training_step(x, 0).backward()
        optimiser.step()
    after = divergences()
    assert after[0] < 0.05 < 0.3 < before[0]
    assert after[1] < 0.15


def test_binary_latents_are_learnt_by_amortised_learning_too() -> None:
    """The gradient's error falls with N, against log p(x) by enumeration."""
    model, kernel = method().generative, functools.partial(MedianKernel, multiple=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.7)
    errors = [relative_error(model, lambda x: log_marginal(model, x), kernel, 0.03, count, 3) for count in (500, 2000)]
    assert errors[1] < 0.1
    assert errors[0] > 1.5 * errors[1]


def test_callbacks_take_a_model_with_binary_latents(tmp_path: Path) -> None:
    learning = Learning(sleep_samples=20, held_out=10)
    decoder = functools.partial(MLPDecoder, hidden=[6])
    options: dict[str, Any] = {"image_shape": (1, 8, 8), "likelihood": "bernoulli", "prior": BernoulliPrior}
    for name, module in {
        "al": ImageModel(3, decoder, learning, **options),
        "rws": ReweightedWakeSleep(latent_dim=3, decoder=decoder, encoder=ENCODER, averaging=0.9, **options),
    }.items():
        run = trainer(
            tmp_path / name, [LogLikelihood(num_samples=200, val_samples=100, max_images=5), SampleGrid(2)], max_steps=3
        )
        run.fit(module, datamodule=Images())
        run.test(module, datamodule=Images(), verbose=False)
        assert float(run.callback_metrics["test/log_likelihood"]) < 0
        assert (tmp_path / name / "samples" / "test.png").exists()
        assert "importance_weighted_bound" in " ".join(run.callback_metrics) or name == "al"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "model.samples is 0"),
        ({"phi": "dream"}, "model.phi is 'dream'"),
        ({"prior": functools.partial(GaussianMixturePrior, components=2)}, "GaussianMixturePrior, whose latents"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReweightedWakeSleep(
            latent_dim=2, encoder=ENCODER, decoder=MLPDecoder, image_shape=SHAPE, likelihood="bernoulli", **settings
        )
