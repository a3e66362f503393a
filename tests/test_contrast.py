"""The contrast decoder against what is known of scale mixtures, its features and gradients against exact ones."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from gradient_error import relative_error
from runs import Images, trainer
from torch import Tensor
from torch.distributions import MultivariateNormal

from lightning_alws.contrast import CONTRAST_RATE, ContrastDecoder, ContrastFeatures, ContrastReference
from lightning_alws.errors import UserError
from lightning_alws.generative import PlugIn
from lightning_alws.kernels import MedianKernel
from lightning_alws.learning import Learning
from lightning_alws.likelihoods import Likelihood
from lightning_alws.metrics.filters import kurtosis
from lightning_alws.models import ImageModel
from lightning_alws.models.image import ImageGenerator
from lightning_alws.regression import KernelRidge
from lightning_alws.residual import ResidualPlugIn

SHAPE = (3, 8, 8)


def model(likelihood: str = "gaussian_unbounded", latent_dim: int = 7, **decoder: Any) -> ImageGenerator:
    """A float64 generative part whose outputs are of order one."""
    settings = {"contrast": 2, "flat": 2, "weight_std": 0.5} | decoder
    build = functools.partial(ContrastDecoder, **settings)
    return ImageGenerator(SHAPE, likelihood, latent_dim, build, 0.1, noise_scale=0.3).double()


def test_without_contrast_it_is_probabilistic_principal_component_analysis() -> None:
    """x ~ N(b, WWᵀ + σ²I), by quadrature free of sampling: p(x) = p(x|z) p(z)/p(z|x) at any z."""
    generative = model(contrast=0, flat=0, latent_dim=4)
    weight, bias = generative.decoder.weight, generative.decoder.bias
    bias.data.normal_()
    variance = generative.pixels.scale.square()  # type: ignore[union-attr, operator]
    size = math.prod(SHAPE)
    covariance = weight @ weight.T + variance * torch.eye(size).double()
    x = generative.sleep(5).x
    expected = MultivariateNormal(bias.flatten(), covariance).log_prob(x.flatten(1))
    posterior = torch.linalg.inv(weight.T @ weight / variance + torch.eye(4).double())
    centre = (x - bias).flatten(1) @ weight @ posterior / variance
    z = centre + 0.3 * torch.randn_like(centre)
    joint = generative.likelihood(z).log_prob(x) + generative.log_prior(z)
    log_posterior = torch.stack(
        [MultivariateNormal(c, posterior).log_prob(one) for c, one in zip(centre, z, strict=True)]
    )
    torch.testing.assert_close(joint - log_posterior, expected)


def test_contrast_moves_what_it_should_and_nothing_else() -> None:
    decoder = model().decoder
    decoder.bias.data.normal_()
    z = torch.randn(6, 7).double()
    still = z.clone()
    still[:, 5:] = 0
    constant = decoder.gain(still[:1])  # e^{−Var g}
    linear = (z[:, 2:5] @ decoder.weight[:, 2:].T).view(6, *SHAPE)
    even = (z[:, :2] @ decoder.weight[:, :2].T).view(6, *SHAPE) + decoder.bias
    torch.testing.assert_close(decoder(still), even + constant * linear)
    flat = z.clone()
    flat[:, 2:5] = 0  # the part of varying contrast is black
    assert torch.equal(decoder(flat), decoder(torch.cat([flat[:, :5], torch.randn(6, 2).double()], dim=1)))
    ratio = (decoder(z) - decoder(flat)) / (decoder(still) - decoder(torch.cat([still[:, :2], 0 * z[:, 2:]], dim=1)))
    torch.testing.assert_close(ratio, (decoder.gain(z) / constant).expand(-1, *SHAPE))
    square = decoder.gain(torch.cat([torch.zeros(20_000, 5), torch.randn(20_000, 2)], 1).double()).square().mean(0)
    torch.testing.assert_close(square, torch.ones_like(square), rtol=0.05, atol=0.0)
    # Bilinear: the mean over the four pixels around a place's centre is the log contrast there.
    log_gain = (decoder.gain(z) / constant).log()[:, 0]
    places = CONTRAST_RATE * (z[:, 5:] @ decoder.log_contrast.T).view(6, 4, 4)
    corners = log_gain[:, 0::2, 0::2] + log_gain[:, 1::2, 1::2]
    torch.testing.assert_close(corners, corner_sums(places))


def corner_sums(places: Tensor) -> Tensor:
    """Upper left and lower right pixel of each cell of 2 × 2, interpolated from (N, cells, cells) by hand."""
    padded = torch.nn.functional.pad(places, (1, 1, 1, 1), mode="replicate")
    inner = padded[:, 1:-1, 1:-1]
    upper = 0.5625 * inner + 0.1875 * (padded[:, :-2, 1:-1] + padded[:, 1:-1, :-2]) + 0.0625 * padded[:, :-2, :-2]
    lower = 0.5625 * inner + 0.1875 * (padded[:, 2:, 1:-1] + padded[:, 1:-1, 2:]) + 0.0625 * padded[:, 2:, 2:]
    return upper + lower


def test_tails_are_those_of_a_scale_mixture() -> None:
    """Of g ε with log g ~ N(0, s²) the kurtosis is 3 e^{4s²}; of a linear decoder's outputs it is 3."""
    decoder = ContrastDecoder(3, (1, 8, 8), contrast=1, flat=0, cells=1, weight_std=1.0)
    decoder.log_contrast.data.fill_(0.3 / CONTRAST_RATE)
    torch.manual_seed(0)
    z = torch.randn(50_000, 3)
    with torch.no_grad():
        assert kurtosis(decoder(z)[:, 0, 3, 4]) == pytest.approx(3 * math.exp(0.36), rel=0.07)
        z[:, 2] = 0
        assert kurtosis(decoder(z)[:, 0, 3, 4]) == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(("bounded", "pixels"), [(True, "gaussian"), (False, "gaussian"), (False, "gaussian_channels")])
def test_means_leave_the_bounds_only_where_they_may(bounded: bool, pixels: str) -> None:
    build = functools.partial(ContrastDecoder, contrast=2, flat=2, weight_std=2.0)
    generative = ImageGenerator(SHAPE, "gaussian", 7, build, bounded=bounded, pixels=pixels)  # type: ignore[arg-type]
    z = generative.sample_prior(20)
    output = generative.decoder(z)
    torch.testing.assert_close(generative.likelihood(z).mean, output.tanh() if bounded else output)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "gaussian_unbounded"])
@pytest.mark.parametrize("contrast", [0, 2])
def test_every_parameter_receives_a_gradient(likelihood: str, contrast: int) -> None:
    generative = model(likelihood, contrast=contrast)
    z = generative.sample_prior(5)
    likelihood_of = generative.likelihood(z)
    likelihood_of.log_prob(likelihood_of.sample()).sum().backward()
    parameters = dict(generative.named_parameters())
    assert ("decoder.log_contrast" in parameters) == bool(contrast)
    assert [name for name, p in parameters.items() if p.grad is None or not (p.grad != 0).any()] == []


def residual_gradients(value: Tensor, generative: ImageGenerator) -> dict[str, Tensor]:
    named = dict(generative.named_parameters())
    return dict(zip(named, torch.autograd.grad(value, [*named.values()]), strict=True))


def expected(reference: ContrastReference, likelihood: Likelihood, x: Tensor) -> Tensor:
    """E_q0[log p(x|z)], shape (B,)."""
    parameters, normaliser = reference.expectation(x)
    return (parameters * likelihood.sufficient_statistics(x)).sum(1) - normaliser


@pytest.mark.parametrize("count", [400, 90])  # more images than numbers, and fewer
def test_it_begins_at_probabilistic_principal_components(count: int) -> None:
    """W Wᵀ + σ²I is the data's covariance in the leading directions, and as large in all; a maximum of likelihood."""
    torch.manual_seed(4)
    scales = torch.cat([torch.tensor([9.0, 7, 5, 3]), 0.5 * torch.ones(188)]).double()
    directions, _ = torch.linalg.qr(torch.randn(192, 192).double())
    x = (torch.randn(count, 192).double() * scales) @ directions.T + 3
    decoder = ContrastDecoder(6, SHAPE, contrast=2, flat=2, linear_start=True).double()
    variance = decoder.start_from(x.view(count, *SHAPE)) ** 2
    torch.testing.assert_close(decoder.bias.flatten(), x.mean(0))
    covariance, weight = x.T.cov(), decoder.weight.detach()
    model_covariance = weight @ weight.T + variance * torch.eye(192).double()
    torch.testing.assert_close(model_covariance.trace(), covariance.trace())
    torch.testing.assert_close(model_covariance @ weight, covariance @ weight)
    # Stationary: S C⁻¹ W = W (Tipping and Bishop, equation 13).
    torch.testing.assert_close(covariance @ torch.linalg.solve(model_covariance, weight), weight)


def test_without_contrast_the_reference_alone_gives_the_exact_gradient() -> None:
    """∇_θ E_q0[log p(x|z)], q_0 held fixed, is ∇_θ log p(x) where q_0 is the posterior (Fisher's identity)."""
    generative = model(contrast=0, flat=2, latent_dim=4)
    generative.decoder.weight.data *= 3
    generative.decoder.bias.data.normal_()
    x = torch.randn(3, *SHAPE).double()
    likelihood = generative.likelihood(generative.sample_prior(2))
    reference = generative.decoder.reference(likelihood.log_scale)
    ours = residual_gradients(expected(reference, likelihood, x).sum(), generative)
    weight = generative.decoder.weight
    variance = generative.pixels.scale.square()  # type: ignore[union-attr, operator]
    covariance = weight @ weight.T + variance * torch.eye(len(weight)).double()
    law = MultivariateNormal(generative.decoder.bias.flatten(), covariance)
    exact = residual_gradients(law.log_prob(x.flatten(1)).sum(), generative)
    for name, value in exact.items():
        torch.testing.assert_close(ours[name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_residuals_are_regressed_where_there_is_a_reference_alone() -> None:
    assert isinstance(model().sleep(3).joint, ResidualPlugIn)
    for other in (model(residual=False), model("gaussian"), model("bernoulli")):
        assert type(other.sleep(3).joint) is PlugIn
    with pytest.raises(UserError, match="set model.decoder.residual to false, or leave the chunk out"):
        ImageModel(
            7, functools.partial(ContrastDecoder, contrast=2, flat=2), Learning(chunk=10),
            image_shape=SHAPE, likelihood="gaussian_unbounded",
        )  # fmt: skip


def features_of(generative: ImageGenerator, **settings: Any) -> ContrastFeatures:
    features = ContrastFeatures(SHAPE, **settings)
    features.attach(generative)
    return features


@pytest.mark.parametrize("pixels", ["gaussian", "gaussian_channels"])
def test_scores_are_the_linear_posterior_in_units_of_its_spread(pixels: str) -> None:
    generative = ImageGenerator(
        SHAPE, "gaussian_unbounded", 6, functools.partial(ContrastDecoder, contrast=0, flat=0, weight_std=0.5), 0.2,
        pixels=pixels,  # type: ignore[arg-type]
    ).double()  # fmt: skip
    weight, variance = generative.decoder.weight, generative.pixels.scale.square().mean()  # type: ignore[union-attr, operator]
    x = generative.sleep(4).x
    covariance = weight @ weight.T + variance * torch.eye(len(weight)).double()
    gain = weight.T @ torch.linalg.inv(covariance)  # E[z|x] = Wᵀ (WWᵀ + σ²I)⁻¹ (x − b)
    spread = (gain @ weight).diagonal().sqrt()
    expected = x.flatten(1) @ gain.T / spread / 6**0.5
    features = features_of(generative)
    before = features(x)
    assert before.shape == (4, 6 + 16)
    torch.testing.assert_close(before[:, :6], expected)
    generative.decoder.weight.data *= 2
    assert not torch.allclose(features(x)[:, :6], before[:, :6])  # they follow the model


def test_energies_are_those_of_the_varying_part() -> None:
    """Four times the contrast is 2 log 4 more, everywhere; what has flat contrast has no energy."""
    generative = model()
    features = features_of(generative, cells=2)
    means = 30 * torch.randn(5, 5).double()
    image = (means[:, 2:] @ generative.decoder.weight[:, 2:].T).view(5, *SHAPE)
    quarter = image[:, :, 4:, :4].square().mean((1, 2, 3)).log()
    energies = features.energies(means)
    torch.testing.assert_close(energies[:, 2], quarter, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.energies(4 * means), energies + 2 * math.log(4), rtol=1e-4, atol=1e-4)
    moved = means.clone()
    moved[:, :2] = 7
    assert torch.equal(features.energies(moved), energies)
    weighted = features_of(generative, cells=2, weight=0.5)(generative.sleep(3).x)
    assert weighted.shape == (3, 5 + 4)


@pytest.mark.slow  # four seconds
def test_amortised_gradient_converges_to_the_exact_one() -> None:
    """One latent for the image and one for its contrast, by Gauss-Hermite quadrature; all ten parameters."""
    torch.manual_seed(0)
    build = functools.partial(ContrastDecoder, contrast=1, flat=0, cells=1, weight_std=0.4)
    generative = ImageGenerator((1, 2, 2), "gaussian_unbounded", 2, build, 0.3, noise_scale=0.6).double()
    generative.decoder.log_contrast.data.fill_(0.2 / CONTRAST_RATE)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(24))
    grid, log_weight = torch.cartesian_prod(nodes, nodes), torch.cartesian_prod(weights, weights).prod(1).log()
    log_weight = log_weight - math.log(2 * math.pi)

    def log_marginal(x: Tensor) -> Tensor:
        means, scale = generative.decoder(grid).flatten(1), generative.pixels.scale  # type: ignore[union-attr, operator]
        squared = (x.flatten(1)[:, None] - means).square().sum(-1)
        log_prob = -0.5 * squared / scale.square() - 4 * (scale.log() + 0.5 * math.log(2 * math.pi))
        return torch.logsumexp(log_prob + log_weight, dim=1)

    def kernel(shape: tuple[int, ...]) -> MedianKernel:
        built = MedianKernel(shape, functools.partial(ContrastFeatures, cells=1, weight=0.0), multiple=0.5)
        built.network.attach(generative)  # type: ignore[union-attr, operator]
        return built.double()

    errors = [relative_error(generative, log_marginal, kernel, 0.03, count, repeats=5) for count in (500, 2000)]
    assert errors[1] < 0.1, errors
    assert errors[0] > 1.5 * errors[1], errors


SETTINGS = Learning(
    sleep_samples=40,
    held_out=20,
    centred=True,
    averaging=0.5,
    regression=functools.partial(KernelRidge, kernel=functools.partial(MedianKernel, features=ContrastFeatures)),
)


def image_model(**decoder: Any) -> ImageModel:
    return ImageModel(
        latent_dim=7,
        decoder=functools.partial(ContrastDecoder, contrast=2, flat=2, **decoder),
        learning=SETTINGS,
        noise_floor=0.1,
        noise_scale=0.3,
        image_shape=SHAPE,
        likelihood="gaussian_unbounded",
    )


def test_a_run_learns_everything_and_its_state_goes_on_as_it_was(tmp_path: Path) -> None:
    """Features belong to no state: they follow the model that is loaded."""
    learnt = image_model()
    assert [name for name in learnt.state_dict() if "network" in name] == []
    assert learnt.generative.pixels.scale.item() == pytest.approx(math.hypot(0.1, 0.3))
    before = {name: value.clone() for name, value in learnt.generative.named_parameters()}
    data = Images("gaussian", SHAPE)
    trainer(tmp_path, max_steps=3).fit(learnt, datamodule=data)
    assert [name for name, value in learnt.generative.named_parameters() if torch.equal(value, before[name])] == []
    other = image_model()
    other.load_state_dict(learnt.state_dict())
    x, losses = data.images("train"), []
    for each in (learnt, other):
        torch.manual_seed(5)
        sleep = each.generative.sleep(60)
        regression = each.regress(sleep[:40], x)
        centring = each.wake(regression, sleep[:40], sleep.x[40:]).mean()
        losses.append((each.wake(regression, sleep[:40], x).mean() - centring).item())
        assert each.regression.kernel.network.model is each.generative  # type: ignore[union-attr]
    assert losses[0] == losses[1]


def test_a_run_begins_at_the_data_unless_it_is_resumed(tmp_path: Path) -> None:
    """The averaged model too; a run that goes on keeps what it has learnt."""
    data, start = Images("gaussian_unbounded", SHAPE), {}

    class Watch(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            start.update({name: value.clone() for name, value in pl_module.state_dict().items()})

    learnt = image_model(linear_start=True)
    run = trainer(tmp_path, [Watch()], max_steps=2)
    run.fit(learnt, datamodule=data)
    columns = start["generative.decoder.weight"]
    products = columns.T @ columns
    assert (products - products.diagonal().diag()).abs().max() < 1e-4
    x = data.images("train").flatten(1)
    scale = (0.01 + (2 * start["generative.pixels.log_scale"]).exp()).sqrt()
    variance = products.trace() + len(columns) * scale.square()
    torch.testing.assert_close(variance, x.var(0).sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(start["generative.decoder.bias"], data.images("train").mean(0))
    assert torch.equal(start["averaged.module.decoder.weight"], columns)
    run.save_checkpoint(tmp_path / "at_2.ckpt")
    start.clear()
    trainer(tmp_path, [Watch()], max_steps=3).fit(
        image_model(linear_start=True), datamodule=data, ckpt_path=tmp_path / "at_2.ckpt"
    )
    assert all(torch.equal(value, start[name]) for name, value in learnt.state_dict().items())
    assert not torch.equal(start["generative.decoder.weight"], columns)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"model.latent_dim is 16, of which model.decoder takes 8 .* and 24"):
        ContrastDecoder(16, SHAPE)
    with pytest.raises(UserError, match=r"ContrastDecoder is for images \(C, H, W\), but the data's shape is \(5,\)"):
        ContrastDecoder(40, (5,))
    with pytest.raises(UserError, match="cells is 0"):
        ContrastDecoder(40, SHAPE, cells=0)
    with pytest.raises(UserError, match="weight_std is 0"):
        ContrastDecoder(40, SHAPE, weight_std=0)
    with pytest.raises(UserError, match="weight=-1"):
        ContrastFeatures(SHAPE, weight=-1)
    with pytest.raises(UserError, match="follow the model's ContrastDecoder, but the decoder is a Flat"):
        ContrastFeatures(SHAPE).attach(torch.nn.ModuleDict({"decoder": torch.nn.Flatten()}))
    with pytest.raises(UserError, match="model.noise_scale is 0"):
        ImageGenerator(SHAPE, "gaussian", 40, ContrastDecoder, noise_scale=0)
