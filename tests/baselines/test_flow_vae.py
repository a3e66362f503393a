"""Variational autoencoders with flows: without a step the plain one, warm-up, resumed as if uncut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_methods import ENCODER, METHODS, SMALL, built, images, log_marginal
from runs import Images, named, trainer
from torch import Tensor

from lightning_alws.baselines import ImageVAE, SylvesterVAE
from lightning_alws.baselines.lower_bound import log_mean_weight
from lightning_alws.errors import UserError

FLOWS = [name for name in METHODS if name.startswith("flow vae")]


@pytest.mark.parametrize("name", FLOWS)
def test_without_a_step_weights_and_bound_are_the_vaes(name: str) -> None:
    """u = 0, or R₁ = 0: the same noise gives the same log p(x, z)/q(z|x), and the same ELBO with closed divergence."""
    module, x = built(name), images(4)
    plain = built("vae")
    with torch.no_grad():
        if isinstance(module, SylvesterVAE):
            step = 2 if "planar" in name else module.flows.columns**2  # type: ignore[attr-defined]
            rows = module.heads.weight[4:].view(module.count, -1, module.heads.in_features)
            rows[:, :step] = 0
            module.heads.bias[4:].view(module.count, -1)[:, :step] = 0
        else:
            module.u.zero_()  # type: ignore[operator]
        plain.encoder.load_state_dict(module.encoder.state_dict())
        plain.heads.weight.copy_(module.heads.weight[:4])  # type: ignore[union-attr]
        plain.heads.bias.copy_(module.heads.bias[:4])  # type: ignore[union-attr]
        torch.manual_seed(5)
        ours = module.log_weights(x, 7, plain.generative)  # type: ignore[operator]
        torch.manual_seed(5)
        torch.testing.assert_close(ours, plain.log_weights(x, 7, plain.generative))  # type: ignore[operator]
        module.samples = 1
        torch.manual_seed(5)
        ours = module.bound(x, plain.generative)  # type: ignore[operator]
        torch.manual_seed(5)
        torch.testing.assert_close(ours, plain.bound(x, plain.generative))  # type: ignore[operator]


def test_flows_bend_the_posterior_where_a_gaussian_cannot() -> None:
    """For one image and a fixed decoder: the gap between bound and log p(x), of which the flows close more."""
    x, gaps = torch.ones_like(images(1)), []
    for module in (built("vae"), built("flow vae, triangular")):
        with torch.no_grad():
            for layer in module.generative.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.mul_(6.0)
            exact = log_marginal(module.generative, x)
        others = [p for key, p in module.named_parameters() if not key.startswith("generative")]
        optimiser = torch.optim.Adam(others, lr=0.03)
        for _ in range(150):
            optimiser.zero_grad()
            (-module.bound(x.expand(30, -1, -1, -1), module.generative).mean()).backward()  # type: ignore[operator]
            optimiser.step()
        with torch.no_grad():
            gaps.append(float(exact - module.bound(x.expand(20_000, -1, -1, -1), module.generative).mean()))  # type: ignore[operator]
    assert 0 <= gaps[1] < 0.7 * gaps[0], gaps


class Still(SylvesterVAE):
    """At a step of the test's choice."""

    step = 0

    @property
    def global_step(self) -> int:
        return self.step


def test_warm_up_weighs_the_divergence_in_training_alone() -> None:
    torch.manual_seed(0)
    module = Still(ENCODER, warm_up=10, **SMALL).double()
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    x = images(4)
    strengths = []
    for module.step in (0, 4, 9, 500):
        strengths.append(module.strength)
        torch.manual_seed(5)
        loss = module.training_step(x, 0)
        torch.manual_seed(5)
        draws = module.draw(x, 1)
        reconstruction = module.generative.likelihood(draws.z[0]).log_prob(x)
        drawn = draws.log_q[0] - module.generative.log_prior(draws.z[0])
        divergence = drawn - draws.known_noise(module.generative.prior)[0]
        torch.testing.assert_close(loss, -(reconstruction - module.strength * divergence).mean())
        torch.manual_seed(5)
        torch.testing.assert_close(module.bound(x, module.generative), reconstruction - divergence)
    assert strengths == [0.1, 0.5, 1.0, 1.0]
    assert SylvesterVAE(ENCODER, **SMALL).strength == 1


def test_several_samples_give_the_importance_weighted_bound() -> None:
    """It is logged as such, not as an ELBO."""
    module, x = built("flow vae, householder"), images(4)
    assert module.bound_name == "importance_weighted_bound"
    assert METHODS["flow vae, householder"](samples=1).bound_name == "elbo"
    torch.manual_seed(5)
    weights = module.log_weights(x, 3, module.generative)  # type: ignore[operator]
    torch.manual_seed(5)
    torch.testing.assert_close(module.bound(x, module.generative), log_mean_weight(weights))  # type: ignore[operator]


@pytest.mark.parametrize("name", ["flow vae, householder", "sivi"])
def test_a_resumed_run_is_an_uncut_one(name: str, tmp_path: Path) -> None:
    """Cut within the warm-up, between two epochs of four batches."""

    def run(steps: int, file: str, ckpt_path: Path | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = METHODS[name](image_shape=(1, 8, 8), warm_up=10)
        fitting = trainer(tmp_path, max_steps=steps, max_epochs=-1)
        fitting.fit(module, datamodule=Images(), ckpt_path=ckpt_path)
        fitting.save_checkpoint(tmp_path / file)
        return named(module)

    run(4, "cut")
    uncut, resumed = run(8, "uncut"), run(8, "resumed", tmp_path / "cut")
    for key, value in uncut.items():
        assert torch.equal(value, resumed[key]), key


def test_bfloat16_leaves_the_flows_in_full_precision(tmp_path) -> None:
    """Under autocast the columns of Q stay orthonormal, and draws are float32."""
    module = METHODS["flow vae, orthogonal"](image_shape=(1, 8, 8), columns=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, flows = module.posterior(Images().images("train"))
        draws = module.draw(Images().images("train"), 2)
    assert draws.z.dtype == draws.log_q.dtype == torch.float32
    q = flows[0].q
    torch.testing.assert_close(q.mT @ q, torch.eye(2).expand(len(q), 2, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("flow vae, orthogonal", {"flow": "radial"}, "model.flow is 'radial'"),
        ("flow vae, orthogonal", {"flows": 0}, "model.flows is 0"),
        ("flow vae, orthogonal", {"columns": 0}, "model.columns is 0"),
        ("flow vae, orthogonal", {"samples": 0}, "model.samples is 0"),
        ("flow vae, orthogonal", {"warm_up": -1}, "model.warm_up is -1"),
        ("flow vae, not amortised", {"flows": 0}, "model.flows is 0"),
        ("sivi", {"mixture": -1}, "model.mixture is -1"),
        ("sivi", {"noise": []}, "model.noise is "),
        ("sivi", {"hidden": [0]}, "model.hidden is "),
    ],
)
def test_settings_that_make_no_sense_are_named(method: str, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        METHODS[method](**settings)


def test_planar_flows_of_no_encoder_are_alike_for_all_images() -> None:
    module = built("flow vae, not amortised")
    _, flows = module.posterior(images(4))  # type: ignore[operator]
    assert len(flows) == 3
    assert all(flow.u.shape == flow.w.shape == (2,) and flow.b.shape == () for flow in flows)
    assert isinstance(built("vae"), ImageVAE)
