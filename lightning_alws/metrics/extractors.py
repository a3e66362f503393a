"""Feature extractors for FID and KID: what they are made from, and those that need no labels.

Distances compare only where the extractor is the same: each has a name and the hash of all its numbers, which stand
beside every figure in ``results.json`` and which ``alws compare`` checks.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.metrics.pixels import to_levels
from lightning_alws.noise import generator

PROBED = 2_000  # training images from which an extractor without labels takes its scales or directions


@dataclass(frozen=True)
class Extractor:
    """A network with a method ``features``, frozen and in evaluation mode.

    Attributes:
        module: the network; ``module.features`` takes images (B, C, H, W) of the data's space to features (B, width).
        name: e.g. ``lenet-BinarizedMNIST-84``.
        hash: first 12 hexadecimal digits of the SHA-256 of its numbers; two figures compare only if these agree.
        accuracy: fraction of the validation images it classifies correctly; None where it was not trained on labels.
        width: number of features.
        resize: how images are brought to the network's size.
    """

    module: nn.Module
    name: str
    hash: str
    accuracy: float | None
    width: int
    resize: str = "none"

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Images (N, C, H, W) of any floating type to features (N, width), float32, on the module's device."""
        device = next(self.module.buffers(), next(self.module.parameters(), torch.empty(0))).device
        network: Any = self.module
        return torch.cat([network.features(batch.float().to(device)) for batch in images.split(batch_size)])


@dataclass(frozen=True)
class ExtractorData:
    """What an extractor may be made from.

    Attributes:
        name: of the data set.
        likelihood: of its images.
        count: how many images a split ("train", "val", "test") has.
        images: some rows of a split, (n, C, H, W), by their numbers.
        labels: classes of all images of a split, (n,); None where there are none.
        cache_dir: where trained networks are kept; None for the default.
    """

    name: str
    likelihood: str
    count: Callable[[str], int]
    images: Callable[[str, Tensor], Tensor]
    labels: Callable[[str], Tensor] | None
    cache_dir: str | None = None

    def some(self, split: str, most: int, *seed: int | str) -> Tensor:
        """Numbers of at most ``most`` images of a split, ascending: all of them, or some chosen by the seed."""
        count = self.count(split)
        if count <= most:
            return torch.arange(count)
        return torch.randperm(count, generator=generator(*seed))[:most].sort().values


class FeatureExtractor(ABC):
    """Settings of an extractor, chosen as ``fid_kid.extractor`` by ``class_path``."""

    @abstractmethod
    def build(self, data: ExtractorData) -> Extractor:
        """The extractor for a data set, on the CPU. Raises UserError if it cannot be had."""


def hash_numbers(weights: dict[str, Tensor]) -> str:
    """SHA-256 of tensors by name."""
    digest = hashlib.sha256()
    for key in sorted(weights):
        value = weights[key].contiguous()
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


class _Levels(nn.Module):
    """Images of the data's space → [−1, 1] in 256 levels, or, without bounds, as they are; then the subclass's part."""

    def __init__(self, likelihood: str) -> None:
        super().__init__()
        self.likelihood = likelihood

    def prepared(self, x: Tensor) -> Tensor:
        return x if self.likelihood == "gaussian_unbounded" else to_levels(x, self.likelihood) / 127.5 - 1


def _with_unit_mean_square(features: Callable[[Tensor], Tensor], probe: Tensor) -> Tensor:
    """The number that features must be divided by for E‖f‖²/d = 1 over images: KID's kernel is (⟨a, b⟩/d + 1)³."""
    square = torch.cat([features(batch) for batch in probe.split(500)]).square().mean()
    return square.sqrt().clamp_min(torch.finfo(square.dtype).tiny)


class RandomConvolutions(_Levels):
    """Three random convolutions with ReLU, averages over pairs of pixels between them and over quadrants at the end.

    Args:
        image_shape: (C, H, W), H and W at least 8.
        likelihood: of the data.
        width: of the last convolution; there are 4 · width features.
        seed: of the weights.
    """

    scale: Tensor

    def __init__(self, image_shape: tuple[int, ...], likelihood: str, width: int, seed: int) -> None:
        super().__init__(likelihood)
        noise = generator(seed, "random convolutions")
        sizes = [(image_shape[0], 32, 5), (32, 64, 3), (64, width, 3)]
        self.layers = nn.ModuleList()
        for inputs, outputs, side in sizes:
            layer = nn.utils.skip_init(nn.Conv2d, inputs, outputs, side, padding=side // 2, padding_mode="reflect")
            spread = (2 / (inputs * side**2)) ** 0.5
            layer.weight.data = spread * torch.randn(layer.weight.shape, generator=noise)
            layer.bias.data = 0.1 * torch.randn(layer.bias.shape, generator=noise)
            self.layers.append(layer)
        self.halve, self.quadrants = nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2)
        self.register_buffer("scale", torch.ones(()))

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, 4 width), none of them negative."""
        x = self.prepared(x)
        first, second, third = self.layers
        x = self.halve(first(x).relu())
        x = self.halve(second(x).relu())
        return self.quadrants(third(x).relu()).flatten(1) / self.scale


class RandomFeatures(FeatureExtractor):
    """A convolutional network with random weights of a fixed seed: for images without labels.

    It has seen no image but to set its one scale, and sees contrast, colour, edges and textures, not objects; its
    figures compare with nothing but themselves. Idea: Naeem, Oh, Uh, Choi, Yoo, "Reliable fidelity and diversity
    metrics for generative models", ICML 2020, section 5.4 (https://arxiv.org/abs/2002.09797).

    Args:
        width: channels of the last layer; there are four features of each, one a quadrant.
        seed: of the weights; not the run's, so that runs can be compared.

    Raises:
        UserError: the width is below 1.
    """

    def __init__(self, width: int = 64, seed: int = 0) -> None:
        check_at_least("fid_kid.extractor", width=(width, 1))
        self.width, self.seed = width, seed

    def build(self, data: ExtractorData) -> Extractor:
        """The network for the data's image shape; UserError for images below 8 × 8 pixels."""
        probe = data.images("train", data.some("train", PROBED, "random features"))
        shape = tuple(probe.shape[1:])
        if min(shape[1:]) < 8:
            raise UserError(f"RandomFeatures needs images of 8 × 8 pixels or more, but image_shape is {shape}.")
        with torch.inference_mode(False), torch.no_grad():
            network = RandomConvolutions(shape, data.likelihood, self.width, self.seed).to(probe.device)
            network.scale.copy_(_with_unit_mean_square(network.features, probe.clone().float()))
            # The weights alone: the scale's last digits differ between devices, and with the choice of images.
            weights = {name: value for name, value in network.state_dict().items() if name != "scale"}
            weights["scale"] = (network.scale * 1000).round()
            network = network.eval().requires_grad_(False).cpu()
        name = f"random-convolutions-{data.name}-seed{self.seed}"
        return Extractor(network, name, hash_numbers(weights)[:12], None, 4 * self.width)


class Projection(_Levels):
    """Images → ⟨direction_k, x − mean⟩ / scale, for K directions.

    Args:
        likelihood: of the data.
        mean: (D,).
        directions: (D, K).
        scale: a scalar.
    """

    mean: Tensor
    directions: Tensor
    scale: Tensor

    def __init__(self, likelihood: str, mean: Tensor, directions: Tensor, scale: Tensor) -> None:
        super().__init__(likelihood)
        for name, value in (("mean", mean), ("directions", directions), ("scale", scale)):
            self.register_buffer(name, value)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, K)."""
        return (self.prepared(x).flatten(1) - self.mean) @ self.directions / self.scale


class PrincipalComponents(FeatureExtractor):
    """The first principal components of the training images: for images without labels, linear in the pixels.

    FID of linear features sees means and covariances of the leading components alone, and a Gaussian fitted to the
    pixels is perfect by it.

    Args:
        width: how many components.

    Raises:
        UserError: the width is below 1.
    """

    def __init__(self, width: int = 64) -> None:
        check_at_least("fid_kid.extractor", width=(width, 1))
        self.width = width

    def build(self, data: ExtractorData) -> Extractor:
        """The projection; UserError if there are too few training images or pixels for so many components."""
        probe = data.images("train", data.some("train", PROBED, "principal components")).float()
        count, size = len(probe), probe[0].numel()
        if self.width >= min(count, size + 1):
            raise UserError(
                f"fid_kid.extractor.width is {self.width}, but {count} images of {size} numbers have fewer principal "
                "components; give less."
            )
        with torch.inference_mode(False), torch.no_grad():
            flat = _Levels(data.likelihood).prepared(probe.clone()).flatten(1).double().cpu()
            mean = flat.mean(0)
            # By the Gram matrix of the images: there are fewer of them than pixels, where it matters.
            values, vectors = torch.linalg.eigh((flat - mean) @ (flat - mean).T)
            values, vectors = values[-self.width :].clamp_min(1e-12), vectors[:, -self.width :]
            directions = (flat - mean).T @ (vectors / values.sqrt())
            scale = (values.sum() / (count * self.width)).sqrt()
            module = Projection(data.likelihood, mean.float(), directions.float(), scale.float()).eval()
            rounded = {"spectrum": (values / values.sum() * 1e4).round(), "mean": (mean * 1000).round()}
        name = f"pca-{data.name}-{self.width}"
        return Extractor(module, name, hash_numbers(rounded)[:12], None, self.width)
