"""Every decoder, feature network and critic: shapes, gradients, no BatchNorm, the published initialisation."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_alws import networks
from lightning_alws.errors import UserError
from lightning_alws.networks import (
    ConvCritic,
    ConvFeatures,
    DCGANDecoder,
    LinearFeatures,
    MLPCritic,
    MLPDecoder,
    MLPFeatures,
    mlp,
)

SHAPES = [(1, 8, 8), (1, 32, 32), (3, 64, 64)]
LATENT_DIM = 5
DECODERS: list[type[nn.Module]] = [MLPDecoder, DCGANDecoder]
FEATURES: list[type[nn.Module]] = [LinearFeatures, MLPFeatures, ConvFeatures]
CRITICS: list[type[nn.Module]] = [MLPCritic, ConvCritic]
SMALL: dict[type[nn.Module], dict[str, Any]] = {
    MLPDecoder: {"hidden": [7, 6]},
    DCGANDecoder: {"ngf": 2},
    LinearFeatures: {"width": 9},
    MLPFeatures: {"hidden": [7, 6], "width": 9},
    ConvFeatures: {"ndf": 2, "width": 9},
    MLPCritic: {"hidden": [7, 6]},
    ConvCritic: {"ndf": 2},
}
Build = Callable[[tuple[int, ...]], tuple[nn.Module, torch.Tensor, tuple[int, ...]]]


def build(network: type[nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor, tuple[int, ...]]:
    """The network, an input of four rows, and the shape its output must have."""
    if network in DECODERS:
        return network(LATENT_DIM, shape, **SMALL[network]), torch.randn(4, LATENT_DIM), (4, *shape)
    return network(shape, **SMALL[network]), torch.randn(4, *shape), (4,) if network in CRITICS else (4, 9)


every_network = pytest.mark.parametrize("network", DECODERS + FEATURES + CRITICS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def test_no_network_is_left_out() -> None:
    there = {c for _, c in inspect.getmembers(networks, inspect.isclass) if c.__module__ == networks.__name__}
    assert there == {*DECODERS, *FEATURES, *CRITICS}


@every_network
@every_shape
def test_output_shape(network: type[nn.Module], shape: tuple[int, ...]) -> None:
    net, x, expected = build(network, shape)
    assert net(x).shape == expected
    assert net(x[:1]).shape == (1, *expected[1:])


@every_network
@every_shape
def test_every_parameter_receives_a_gradient(network: type[nn.Module], shape: tuple[int, ...]) -> None:
    net, x, _ = build(network, shape)
    net(x).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not (p.grad != 0).any()] == []


@every_network
@every_shape
def test_rows_do_not_see_each_other(network: type[nn.Module], shape: tuple[int, ...]) -> None:
    """No BatchNorm, under whatever name: a row's output is the same alone and in a batch, in training mode."""
    net, x, _ = build(network, shape)
    net.double().train()
    together = net(x.double())
    assert torch.allclose(together[2:3], net(x[2:3].double()), rtol=1e-12, atol=1e-15)
    assert not [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._NormBase)]
    assert not list(net.buffers())


@pytest.mark.parametrize("network", [DCGANDecoder, LinearFeatures])
def test_published_initialisation(network: type[nn.Module]) -> None:
    """Weights ~ N(0, 0.01²): mean and standard deviation of 10 000 and more of them, and no other shape of tails."""
    torch.manual_seed(3)
    published = functools.partial(DCGANDecoder, 8, ngf=32, bias=False, weight_std=0.01)
    large = published if network is DCGANDecoder else functools.partial(LinearFeatures)
    for name, weight in large((1, 32, 32)).named_parameters():
        if not name.endswith("weight"):
            continue
        values, n = weight.detach().flatten().double(), weight.numel()
        assert abs(values.mean()) < 5 * 0.01 / n**0.5, name
        assert abs(values.std() / 0.01 - 1) < 5 / (2 * n) ** 0.5, name
        kurtosis = (values / values.std()).pow(4).mean()
        assert abs(kurtosis - 3) < 6 * (24 / n) ** 0.5, name  # 1.8 for a uniform law


@pytest.mark.parametrize(("size", "widths"), [(8, [1]), (16, [2, 1]), (32, [4, 2, 1]), (64, [8, 4, 2, 1])])
def test_widths_of_the_dcgan_decoder(size: int, widths: list[int]) -> None:
    """4·ngf, 2·ngf, ngf at 32 × 32, as published; the maps are 4, 8, … pixels wide."""
    ngf = 3
    net = DCGANDecoder(LATENT_DIM, (2, size, size), ngf=ngf, bias=False)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.in_channels for layer in layers] == [LATENT_DIM, *(ngf * width for width in widths)]
    assert [layer.out_channels for layer in layers] == [*(ngf * width for width in widths), 2]
    assert all(layer.kernel_size == (4, 4) and layer.bias is None for layer in layers)
    sizes: list[int] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    net(torch.randn(1, LATENT_DIM))
    assert sizes == [4 * 2**i for i in range(len(layers))]


def test_convolutional_features_go_down_to_4_pixels() -> None:
    net = ConvFeatures((2, 32, 32), ndf=3, width=11)
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [3, 6, 12]
    (linear,) = (layer for layer in net.modules() if isinstance(layer, nn.Linear))
    assert (linear.in_features, linear.out_features) == (12 * 4 * 4, 11)


@pytest.mark.parametrize("network", [DCGANDecoder, ConvFeatures, ConvCritic])
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 16), (1, 4, 4), (3, 1, 1), (1, 48, 48), (784,)], ids=str)
def test_image_sizes_that_a_convolution_cannot_take_are_named(network: type[nn.Module], shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as error:
        build(network, shape)
    assert f"image_shape is {shape}" in str(error.value)
    assert "MLP" in str(error.value)  # what to do


@pytest.mark.parametrize("network", [MLPDecoder, LinearFeatures, MLPFeatures, MLPCritic])
@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 3, 5), (17,)], ids=str)
def test_the_others_take_every_shape(network: type[nn.Module], shape: tuple[int, ...]) -> None:
    net, x, expected = build(network, shape)
    assert net(x).shape == expected


@pytest.mark.parametrize("critic", CRITICS)
def test_critics_have_no_constant_and_a_slope_below_zero(critic: type[nn.Module]) -> None:
    net, x, _ = build(critic, (1, 8, 8))
    *_, last = (layer for layer in net.modules() if isinstance(layer, nn.Linear))
    assert last.bias is None
    assert {layer.negative_slope for layer in net.modules() if isinstance(layer, nn.LeakyReLU)} == {0.2}
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).sum(), x)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_features_are_linear() -> None:
    net = LinearFeatures((1, 8, 8), width=6).double()
    a, b, zero = torch.randn(4, 1, 8, 8).double(), torch.randn(4, 1, 8, 8).double(), torch.zeros(4, 1, 8, 8).double()
    torch.testing.assert_close(net(2 * a + b) - net(zero), 2 * (net(a) - net(zero)) + net(b) - net(zero))


def test_mlp_is_its_definition() -> None:
    net = mlp([3, 5, 2]).double()
    x = torch.randn(4, 3).double()
    (w1, b1, w2, b2) = net.parameters()
    torch.testing.assert_close(net(x), (x @ w1.T + b1).clamp_min(0) @ w2.T + b2)
    assert (net(100 * x) < 0).any()  # nothing after the last layer


def test_decoders_are_unbounded() -> None:
    """Squashing is the observation model's business."""
    for decoder in DECODERS:
        net, z, _ = build(decoder, (1, 8, 8))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(100)
        assert net(z).abs().max() > 2
        assert (net(z) < 0).any()
