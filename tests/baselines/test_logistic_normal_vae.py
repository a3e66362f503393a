"""The variational baseline: its divergence and its bound against quadrature and log p(x), and that it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from runs import Images, trainer
from scipy.integrate import quad

from lightning_alws.baselines import LogisticNormalVAE
from lightning_alws.baselines.logistic_normal_vae import LogisticNormal
from lightning_alws.errors import UserError
from lightning_alws.penalties import GammaPenalty


def vae(**settings: Any) -> LogisticNormalVAE:
    settings = {"factors": 2, "hidden": [8], "image_shape": (1, 8, 8), "likelihood": "bernoulli"} | settings
    return LogisticNormalVAE(**settings)


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (2.0, 0.3), (-3.0, 1.5), (0.5, 0.01)])
def test_divergence_is_the_integral(mean: float, scale: float) -> None:
    def integrand(u: float) -> float:
        log_q = -0.5 * ((u - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)
        return math.exp(log_q) * (log_q - (-u - 2 * math.log1p(math.exp(-u))))

    reference, _ = quad(integrand, mean - 12 * scale, mean + 12 * scale, limit=400)
    q = LogisticNormal(*(torch.full((1, 1), value, dtype=torch.float64) for value in (mean, math.log(scale))))
    assert float(q.divergence()) == pytest.approx(reference, abs=1e-4)


def test_divergence_sums_over_factors_and_is_not_negative() -> None:
    mean, log_scale = torch.randn(2, 50, 3, dtype=torch.float64)
    q = LogisticNormal(mean, log_scale)
    parts = [LogisticNormal(mean[:, [k]], log_scale[:, [k]]).divergence() for k in range(3)]
    torch.testing.assert_close(q.divergence(), torch.stack(parts).sum(0))
    assert (q.divergence() > 0).all()


def test_bound_is_below_log_marginal_and_tight_for_the_best_posterior() -> None:
    """E[ELBO] ≤ log p(x), which a fine grid over two logits gives."""
    torch.manual_seed(0)
    module = vae(image_shape=(1, 1, 3), initial_weight=(0.2, 0.8)).double()
    x = torch.tensor([[1.0, 0, 1]], dtype=torch.float64).view(1, 1, 1, 3)
    line = torch.linspace(-22, 22, 120, dtype=torch.float64)
    logits = torch.cartesian_prod(line, line)
    log_prior = (-logits - 2 * torch.nn.functional.softplus(-logits)).sum(1) + 2 * math.log(line[1] - line[0])
    likelihood = module.generative.decode(logits)
    values = likelihood.natural_parameters @ x.flatten() - likelihood.log_normaliser
    exact = float((values + log_prior).logsumexp(0).detach())
    many = x.expand(500, 1, 1, 3)
    assert float(module.elbo(many).mean().detach()) < exact
    optimiser = torch.optim.Adam(module.encoder.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        (-module.elbo(many[:100]).mean()).backward()
        optimiser.step()
    fitted = float(torch.stack([module.elbo(many).mean() for _ in range(10)]).mean().detach())
    assert exact - 0.15 < fitted < exact + 0.01


def test_every_parameter_receives_a_gradient() -> None:
    module = vae()
    module.elbo(torch.rand(20, 1, 8, 8).round()).mean().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not (p.grad != 0).any()] == []


def test_it_trains_and_reports_its_bound(tmp_path) -> None:
    data = Images()
    data.sizes = {"train": 16}  # type: ignore[attr-defined]
    module = vae(penalties=[GammaPenalty("weight", 0.9, 0.3)], learning_rate=0.01, encoder_learning_rate=0.01)
    x = data.images("train")
    before = float(module.elbo(x).mean().detach())
    run = trainer(tmp_path, max_steps=60)
    run.fit(module, datamodule=data)
    module.trainer = None
    assert float(module.elbo(x).mean().detach()) > before + 1
    assert math.isfinite(float(run.callback_metrics["val/elbo"]))
    (tested,) = trainer(tmp_path).test(module, datamodule=data, verbose=False)
    assert math.isfinite(tested["test/elbo"])


def test_reconstructions_are_images() -> None:
    module = vae()
    x = torch.rand(5, 1, 8, 8).round()
    result = module.reconstruct(x)
    q = module.posterior(x)
    torch.testing.assert_close(result.mean_at_expectation, module.generative.decode(q.mean).mean.detach())
    assert result.expected_mean.shape == x.shape
    assert ((result.expected_mean > 0) & (result.expected_mean < 1)).all()
    assert not result.expected_mean.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": "gaussian"}, "likelihood is 'gaussian'"),
        ({"hidden": [0]}, "model.hidden is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"encoder_learning_rate": -1.0}, "encoder_learning_rate is -1"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vae(**settings)
