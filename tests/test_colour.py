"""Colour images and pixels without bounds: shapes, ranges, gradients, densities against torch's, bits per dimension."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Images, trainer
from torch.distributions import Normal

from callbacks.log_likelihood import LogLikelihood
from lightning_alws.errors import UserError
from lightning_alws.likelihoods import DiscretisedLogistic
from lightning_alws.metrics.bits import bits_per_dimension, dequantise
from lightning_alws.models import ImageModel
from lightning_alws.models.image import ImageGenerator
from lightning_alws.networks import ConvCritic, ConvFeatures, DCGANDecoder, MLPDecoder

SHAPES = [(1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64)]
SMALL = functools.partial(MLPDecoder, hidden=[6])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("published", [True, False])
def test_decoder_reaches_the_image_through_halved_widths(shape: tuple[int, int, int], published: bool) -> None:
    """4 → 8 → … as ``dc_gen`` of the published code, one layer more at 64 × 64; no BatchNorm anywhere."""
    options: dict[str, Any] = {"bias": False, "weight_std": 0.01} if published else {}
    decoder = DCGANDecoder(5, shape, ngf=4, **options)
    layers = [layer for layer in decoder.modules() if isinstance(layer, torch.nn.ConvTranspose2d)]
    widths = [16, 8, 4] if shape[1] == 32 else [32, 16, 8, 4]
    assert [layer.in_channels for layer in layers] == [5, *widths]
    assert layers[-1].out_channels == shape[0]
    output = decoder(torch.randn(3, 5))
    assert output.shape == (3, *shape)
    output.square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in decoder.parameters())
    if published:
        assert all(layer.bias is None for layer in layers)
        assert float(layers[0].weight.detach().std()) == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features_and_critic_take_all_sizes_and_no_image_sees_another(shape: tuple[int, int, int]) -> None:
    x = torch.randn(4, *shape)
    for network, width in ((ConvFeatures(shape, 4, 7), (7,)), (ConvCritic(shape, 4), ())):
        assert network(x).shape == (4, *width)
        torch.testing.assert_close(network(x[:2]), network(x)[:2])
        network(x).square().sum().backward()
        assert all(p.grad is not None and (p.grad != 0).any() for p in network.parameters())


@pytest.mark.parametrize(("likelihood", "bounds"), [
    ("bernoulli", (0, 1)), ("gaussian", (-1, 1)), ("gaussian_unbounded", None)
])  # fmt: skip
def test_means_lie_where_the_data_do(likelihood: str, bounds: tuple[int, int] | None) -> None:
    model = ImageGenerator((3, 8, 8), likelihood, 3, SMALL)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter *= 10
        mean = model.likelihood(model.sample_prior(50)).mean
    if bounds is None:
        assert mean.abs().max() > 5
    else:
        assert mean.min() >= bounds[0]
        assert mean.max() <= bounds[1]


@pytest.mark.parametrize("likelihood", ["gaussian", "gaussian_unbounded"])
def test_a_scale_for_each_colour_is_torchs_normal(likelihood: str) -> None:
    model = ImageGenerator((3, 8, 8), likelihood, 2, SMALL, 0.2, pixels="gaussian_channels").double()
    own = torch.tensor([-2.0, -0.5, 0.3], dtype=torch.float64)
    model.pixels.log_scale.data.copy_(own.view(3, 1, 1))  # type: ignore[union-attr, operator]
    z, x = model.sample_prior(5), torch.randn(5, 3, 8, 8).double()
    law = model.likelihood(z)
    output = model.decoder(z)
    mean = output.tanh() if likelihood == "gaussian" else output
    scale = (0.04 + (2 * own).exp()).sqrt()
    reference = Normal(mean, scale.view(3, 1, 1).expand_as(mean))
    torch.testing.assert_close(law.mean, mean)
    torch.testing.assert_close(law.log_prob(x), reference.log_prob(x).flatten(1).sum(1))
    inner = (law.natural_parameters * law.sufficient_statistics(x)).sum(1) - law.log_normaliser
    torch.testing.assert_close(inner, reference.log_prob(x).flatten(1).sum(1))
    weights = torch.randn(5, 4).double()
    pairs = torch.stack([reference.log_prob(one.expand_as(mean)).flatten(1).sum(1) for one in x[:4]], 1)
    torch.testing.assert_close(law.expectation(weights, x[:4]), (weights * pairs).sum(0))
    assert set(model.watched()) == {"noise_scale_0", "noise_scale_1", "noise_scale_2"}
    torch.testing.assert_close(torch.stack([*model.watched().values()]), scale)
    gradients = torch.autograd.grad(law.expectation(weights, x[:4]).sum(), [*model.parameters()])
    assert all((gradient != 0).any() for gradient in gradients)


def test_pixels_that_do_not_suit_the_data_are_refused() -> None:
    with pytest.raises(UserError, match="is 'logistic', but the data's likelihood is 'gaussian_unbounded'"):
        ImageGenerator((1, 8, 8), "gaussian_unbounded", 2, SMALL, pixels="logistic")
    with pytest.raises(UserError, match="must be one of bernoulli, gaussian, gaussian_unbounded"):
        ImageGenerator((1, 8, 8), "poisson", 2, SMALL)


def test_bits_per_dimension_by_hand() -> None:
    assert float(bits_per_dimension(torch.tensor(-6 * math.log(256)), 6)) == pytest.approx(8)
    law = DiscretisedLogistic(torch.zeros(1, 3), torch.tensor(-1.0))
    x = torch.tensor([[-1.0, 1 / 255, 1.0]])
    scale, half = math.exp(-1.0), 1 / 255
    cdf = lambda value: 1 / (1 + math.exp(-value / scale))  # noqa: E731
    masses = [cdf(-1 + half), cdf(1 / 255 + half) - cdf(1 / 255 - half), 1 - cdf(1 - half)]
    by_hand = -sum(math.log2(mass) for mass in masses) / 3
    assert float(bits_per_dimension(law.log_prob(x), 3)) == pytest.approx(by_hand, rel=1e-5)
    # A uniform density on [−1 − δ/2, 1 + δ/2] is one of 256 equal levels.
    density = -4 * math.log(2 + 2 / 255)
    assert float(bits_per_dimension(torch.tensor(density), 4, 2 / 255)) == pytest.approx(8)


def test_dequantised_images_are_spread_over_their_levels_alone() -> None:
    levels = torch.randint(256, (2000,)) / 255 * 2 - 1
    spread = dequantise(levels, 2 / 255, torch.Generator().manual_seed(0)) - levels
    assert spread.abs().max() <= 1 / 255 + 1e-6
    assert float(spread.std()) == pytest.approx(2 / 255 / 12**0.5, rel=0.05)
    again = dequantise(levels, 2 / 255, torch.Generator().manual_seed(0)) - levels
    assert torch.equal(again, spread)


def measured(folder: Path, pixels: str, white: int | None, **options: Any) -> tuple[dict[str, float], LogLikelihood]:
    model = ImageModel(2, SMALL, pixels=pixels, image_shape=(1, 8, 8), likelihood="gaussian")  # type: ignore[arg-type]
    data = Images("gaussian")
    data.splits = {split: ((x + 1) * 127.5).round() / 127.5 - 1 for split, x in data.splits.items()}
    if white:
        data.white = white  # type: ignore[attr-defined]
    callback = LogLikelihood(method="prior", num_samples=50, **options)
    (logged,) = trainer(folder, [callback]).test(model, datamodule=data, verbose=False)
    return logged, callback


def test_a_test_logs_bits_where_they_are_defined(tmp_path: Path) -> None:
    logged, _ = measured(tmp_path, "logistic", 255)
    assert logged["test/bits_per_dim"] == pytest.approx(-logged["test/log_likelihood"] / 64 / math.log(2), rel=1e-5)
    logged, _ = measured(tmp_path, "gaussian", 255)
    assert "test/bits_per_dim" not in logged
    logged, callback = measured(tmp_path, "gaussian", 255, dequantise=True)
    expected = -(logged["test/log_likelihood"] / 64 + math.log(2 / 255)) / math.log(2)
    assert logged["test/bits_per_dim"] == pytest.approx(expected, rel=1e-5)
    assert callback.provenance()["bits_per_dim"] == {"dequantised": "uniform"}
    with pytest.raises(UserError, match="log_likelihood.dequantise is true, but the images of Images have no levels"):
        measured(tmp_path, "gaussian", None, dequantise=True)


def test_frechet_distance_is_that_of_scipys_matrix_root() -> None:
    from scipy.linalg import sqrtm

    from lightning_alws.metrics.distances import frechet_distance

    real, fake = torch.randn(200, 6) @ torch.randn(6, 6), torch.randn(150, 6) @ torch.randn(6, 6) + 0.3
    a, b = (part.double().numpy() for part in (real, fake))
    covariances = [part.T.cov().numpy() for part in (real.double(), fake.double())]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (covariances[0] + covariances[1] - 2 * root).trace()
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
