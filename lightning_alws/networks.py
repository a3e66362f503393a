"""Decoders, encoders, feature networks and critics. None has BatchNorm: all batches must pass the same function.

Decoders give unbounded outputs; what they mean (logits, a mean before tanh) is the observation model's business.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from torch import Tensor, nn

from lightning_alws.errors import UserError

Decoder = Callable[[int, tuple[int, ...]], nn.Module]


def mlp(sizes: list[int], layer_norm: bool = False, orthogonal: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them.

    Args:
        sizes: [in, hidden …, out].
        layer_norm: normalise each hidden layer before its ReLU.
        orthogonal: orthogonal initial weights and no initial biases, instead of PyTorch's.

    Raises:
        UserError: a width is below 1.
    """
    if min(sizes) < 1:
        raise UserError(f"hidden is {sizes[1:-1]}, between {sizes[0]} inputs and {sizes[-1]} outputs; give widths ≥ 1.")
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        if orthogonal:
            nn.init.orthogonal_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, *([nn.LayerNorm(outputs)] if layer_norm else []), nn.ReLU()]
    return nn.Sequential(*layers[: -2 if layer_norm else -1])


def small_normal(module: nn.Module, std: float = 0.01) -> None:
    """Weights of every linear and convolutional layer ~ N(0, std²), the published initialisation; biases stay."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, std=std)


def _doublings(event_shape: tuple[int, ...]) -> int:
    """How many times a 4 × 4 map doubles to reach the image."""
    height, width = event_shape[-2:] if len(event_shape) == 3 else (0, 0)
    doublings = round(math.log2(height / 4)) if height >= 8 else 0
    if height != width or height != 4 * 2**doublings or doublings < 1:
        raise UserError(
            f"a convolutional network needs square images of 8, 16, 32, 64, … pixels, but image_shape is "
            f"{tuple(event_shape)}; pad the images or choose an MLP network."
        )
    return doublings


class MLPDecoder(nn.Module):
    """z (N, latent_dim) → (N, *event_shape) through fully connected layers with ReLU; options as of :func:`mlp`."""

    def __init__(
        self,
        latent_dim: int,
        event_shape: tuple[int, ...],
        hidden: list[int] = [256, 256],  # noqa: B006
        layer_norm: bool = False,
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        layers = mlp([latent_dim, *hidden, math.prod(event_shape)], layer_norm, orthogonal)
        self.net = nn.Sequential(layers, nn.Unflatten(1, event_shape))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class DCGANDecoder(nn.Module):
    """z (N, latent_dim) → (N, C, H, W) by transposed 4 × 4 convolutions, 4 → 8 → … → H, no BatchNorm.

    At 32 × 32 the widths are 4·ngf, 2·ngf, ngf. The published ``dc_gen`` (kevin-w-li/al-ws) has no biases and weights
    N(0, 0.01²): its output hardly depends on z at first. With 1 000 sleep samples on binarised MNIST many of its
    latents then turn blank for good, which biases and PyTorch's own initialisation prevent.

    Args:
        latent_dim: dimension of z.
        event_shape: (C, H, W), square, a power of two from 8 up.
        ngf: width of the last hidden layer.
        bias: whether the layers have biases (published: no).
        weight_std: standard deviation of the initial weights (published: 0.01); None for PyTorch's initialisation.

    Raises:
        UserError: the images have another size.
    """

    def __init__(
        self,
        latent_dim: int,
        event_shape: tuple[int, ...],
        ngf: int = 64,
        bias: bool = True,
        weight_std: float | None = None,
    ) -> None:
        super().__init__()
        doublings = _doublings(event_shape)
        widths = [ngf * 2**i for i in range(doublings - 1, -1, -1)]
        layers: list[nn.Module] = [
            nn.Unflatten(1, (latent_dim, 1, 1)),
            nn.ConvTranspose2d(latent_dim, widths[0], 4, 1, 0, bias=bias),
        ]
        for inputs, outputs in itertools.pairwise([*widths, event_shape[0]]):
            layers += [nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=bias)]
        self.net = nn.Sequential(*layers)
        if weight_std is not None:
            small_normal(self, weight_std)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class LinearFeatures(nn.Module):
    """x → one linear layer of the flattened x, weights N(0, 0.01²) (kevin-w-li/al-ws: ``lin_feat``)."""

    def __init__(self, event_shape: tuple[int, ...], width: int = 100) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(event_shape), width))
        small_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class MLPFeatures(nn.Module):
    """x → fully connected layers with ReLU on the flattened x, the last of ``width`` units linear; as :func:`mlp`."""

    def __init__(
        self,
        event_shape: tuple[int, ...],
        hidden: list[int] = [256, 256],  # noqa: B006
        width: int = 32,
        layer_norm: bool = False,
        orthogonal: bool = False,
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), mlp([math.prod(event_shape), *hidden, width], layer_norm, orthogonal))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class MLPCritic(nn.Module):
    """x → one number D(x), fully connected layers with LeakyReLU (slope 0.2); the last has no bias.

    A constant added to a critic changes none of its differences, and would drift by rounding errors alone.
    """

    def __init__(self, event_shape: tuple[int, ...], hidden: list[int] = [256, 256]) -> None:  # noqa: B006
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise([math.prod(event_shape), *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Linear([math.prod(event_shape), *hidden][-1], 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]


class ConvCritic(nn.Module):
    """x (N, C, H, W) → one number D(x): convolutions of stride 2 down to 4 × 4, LeakyReLU (slope 0.2), a linear layer.

    At 32 × 32 the widths are ndf, 2·ndf, 4·ndf. Without BatchNorm, which would make D(x) depend on the other images of
    the batch, and the last layer without bias, as in :class:`MLPCritic`.

    Args:
        event_shape: (C, H, W), square, a power of two from 8 up.
        ndf: width of the first layer.

    Raises:
        UserError: the images have another size.
    """

    def __init__(self, event_shape: tuple[int, ...], ndf: int = 64) -> None:
        super().__init__()
        widths = [event_shape[0], *(ndf * 2**i for i in range(_doublings(event_shape)))]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]


class ConvFeatures(nn.Module):
    """x (N, C, H, W) → convolutions of stride 2 down to 4 × 4, then a linear layer (``dc_feat`` without BatchNorm)."""

    def __init__(self, event_shape: tuple[int, ...], ndf: int = 32, width: int = 100) -> None:
        super().__init__()
        widths = [event_shape[0], *(ndf * 2**i for i in range(_doublings(event_shape)))]
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
