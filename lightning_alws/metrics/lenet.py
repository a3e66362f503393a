"""A small convolutional classifier of the data set at hand, whose last hidden layer serves FID and KID as features.

Inception features mean little on 8 × 8 or binary images; a classifier trained on the very data set does better there,
but its distances compare only with those of the *same* network: one per data set, trained once, kept in a cache and
identified by the hash of its weights. Source of the idea: Bińkowski, Sutherland, Arbel, Gretton,
"Demystifying MMD GANs", ICLR 2018 (https://arxiv.org/abs/1801.01401), Table 3.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_alws.errors import UserError, check_at_least
from lightning_alws.files import atomic_write, default_cache_dir
from lightning_alws.metrics.extractors import Extractor, ExtractorData, FeatureExtractor, hash_numbers
from lightning_alws.noise import seeded

log = logging.getLogger(__name__)

BATCH_SIZE = 128
RECIPE = 1  # one more whenever the network or its training changes, so that no older file is taken for it
LEARNING_RATE = 2e-3  # the peak of the one-cycle schedule
MOST_IMAGES = 60_000  # of more, some chosen by a fixed seed are learnt from
SMALL_DATA = 5_000  # below so many training images the network gets at most SMALL_WIDTH features
SMALL_WIDTH = 64


class LeNet(nn.Module):
    """Two convolutions with pooling, one hidden layer (the features), one linear layer to the classes.

    Args:
        image_shape: (C, H, W), H and W at least 4; a UserError otherwise.
        num_classes: number of classes.
        width: number of features.
    """

    def __init__(self, image_shape: tuple[int, ...], num_classes: int, width: int) -> None:
        super().__init__()
        channels, height, columns = image_shape
        if min(height, columns) < 4:
            raise UserError(f"the LeNet needs images of 4 × 4 pixels or more, but image_shape is {tuple(image_shape)}.")
        self.trunk = nn.Sequential(
            *(nn.Conv2d(channels, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (height // 4) * (columns // 4), width), nn.ReLU()),
        )
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to features (B, width), none of them negative."""
        return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to class scores (B, num_classes)."""
        return self.head(self.features(x))


class LeNetFeatures(FeatureExtractor):
    """The last hidden layer of a :class:`LeNet` trained on the labels of the data set, once, and kept in a cache.

    Args:
        width: number of features; at most 64 for fewer than 5000 training images.

    Raises:
        UserError: the width is below 1.
    """

    def __init__(self, width: int = 84) -> None:
        check_at_least("fid_kid.extractor", width=(width, 1))
        self.width = width

    def build(self, data: ExtractorData) -> Extractor:
        """The trained network, from the cache if it is there; UserError for data without labels."""
        if data.labels is None:
            raise UserError(
                f"fid_kid.extractor is LeNetFeatures, which learns from labels, but {data.name} has none; choose "
                "RandomFeatures, PrincipalComponents or InceptionFeatures."
            )
        rows = data.some("train", MOST_IMAGES, "lenet")
        width = min(self.width, SMALL_WIDTH) if len(rows) < SMALL_DATA else self.width
        held_out = "val" if data.count("val") else "test"
        held_rows = data.some(held_out, MOST_IMAGES, "lenet")
        labels, held_labels = data.labels("train"), data.labels(held_out)
        # Its seed is not the callback's: runs with different seeds must be measured by the same network.
        return cached_lenet(
            data.cache_dir,
            data.name,
            data.images("train", rows),
            labels[rows.to(labels.device)],
            data.images(held_out, held_rows),
            held_labels[held_rows.to(held_labels.device)],
            width,
        )


def default_epochs(count: int) -> int:
    """Epochs for ``count`` training images: 3 for MNIST's 55 000 (under a minute on two cores), 40 for Digits' 1350."""
    return min(40, max(2, round(165_000 / max(count, 1))))


def train_lenet(
    images: Tensor, labels: Tensor, val_images: Tensor, val_labels: Tensor, width: int, epochs: int, seed: int
) -> tuple[LeNet, float]:
    """Trains a LeNet on the images' device with Adam and a one-cycle schedule; reproducible on one kind of device.

    The global random state is left as it was, and it may be called under ``inference_mode`` (Lightning validates so).

    Args:
        images, labels: training set, (N, C, H, W) and (N,) integers from 0.
        val_images, val_labels: validation set, in the same form.
        width: number of features.
        epochs: passes over the training set.
        seed: of the initial weights and the order of the images.

    Returns the network in evaluation mode, and its accuracy on the validation set, between 0 and 1.

    Raises:
        UserError: a set is empty, or images and labels differ in number.
    """
    for split, x, y in (("training", images, labels), ("validation", val_images, val_labels)):
        if len(x) == 0 or len(x) != len(y):
            raise UserError(f"the LeNet got {len(x)} {split} images and {len(y)} labels; it needs one label per image.")
    device = images.device
    num_classes = 1 + int(max(labels.max(), val_labels.max()))
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with torch.inference_mode(False), torch.enable_grad(), seeded(device, seed, "lenet"):
            network = LeNet(tuple(images.shape[1:]), num_classes, width).float().to(device)
            _fit(network, images, labels, epochs)
    finally:
        torch.backends.cudnn.deterministic = deterministic
    network.eval()
    with torch.no_grad():
        predicted = torch.cat([network(x.float()).argmax(1) for x in val_images.split(500)])
    return network, float((predicted == val_labels).double().mean())


def _fit(network: LeNet, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    batches = -(-len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH_SIZE):
            rows = rows.to(images.device)
            loss = functional.cross_entropy(network(images[rows].float()), labels[rows].long())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def cached_lenet(
    cache_dir: str | Path | None,
    name: str,
    images: Tensor,
    labels: Tensor,
    val_images: Tensor,
    val_labels: Tensor,
    width: int,
    epochs: int | None = None,
    seed: int = 0,
) -> Extractor:
    """The data set's LeNet from the cache, on the CPU; trained, and stored, if it is not there or not the right one.

    A damaged file, or one trained otherwise, is replaced with a warning. A cache that cannot be written costs a
    warning and the training at the next run.

    Args:
        cache_dir: folder, made if missing; None for :func:`default_cache_dir`.
        name: of the data set.
        images, labels, val_images, val_labels, width, seed: as in :func:`train_lenet`.
        epochs: None for :func:`default_epochs`.

    Raises:
        UserError: as :func:`train_lenet`.
    """
    epochs = default_epochs(len(images)) if epochs is None else epochs
    full_name = f"lenet-{name}-{width}"
    path = Path(cache_dir or default_cache_dir()) / (re.sub(r"[^\w.-]", "_", full_name) + ".pt")
    fingerprint = {
        "recipe": RECIPE,
        "data": name,
        "shape": list(images.shape[1:]),
        "count": len(images),
        "images": _hash_images(images, labels),
        "width": width,
        "epochs": epochs,
        "seed": seed,
    }
    stored = _load(path, fingerprint) if path.exists() else None
    if stored is None:
        log.info("training %s on %d images (%d epochs), once for this data set", full_name, len(images), epochs)
        network, accuracy = train_lenet(images, labels, val_images, val_labels, width, epochs, seed)
        weights = {key: value.detach().cpu() for key, value in network.state_dict().items()}
        stored = {
            "weights": weights,
            "accuracy": accuracy,
            "fingerprint": fingerprint,
            "sha256": hash_numbers(weights),
        }
        _store(path, stored)
    # A module built under inference mode would hold inference tensors, which no later autograd graph may touch.
    with torch.inference_mode(False), seeded(torch.device("cpu"), 0):
        module = LeNet(tuple(images.shape[1:]), len(stored["weights"]["head.bias"]), width).float()
        module.load_state_dict(stored["weights"])
        module.eval().requires_grad_(False)
    return Extractor(module, full_name, stored["sha256"][:12], stored["accuracy"], width)


def _load(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    try:
        with torch.inference_mode(False):
            stored = torch.load(path, map_location="cpu", weights_only=True)
        if hash_numbers(stored["weights"]) != stored["sha256"] or not isinstance(stored["accuracy"], float):
            raise ValueError("the checksum of the weights does not agree")
        found = stored["fingerprint"]
    except Exception as error:  # of any kind, from a damaged file
        warnings.warn(f"the LeNet in {path} cannot be read ({error}); it is trained anew.", stacklevel=3)
        return None
    differing = sorted(key for key in fingerprint if found.get(key) != fingerprint[key])
    if differing:
        what = ", ".join(differing)
        warnings.warn(f"the LeNet in {path} was trained otherwise ({what} differ); it is trained anew.", stacklevel=3)
        return None
    return stored


def _store(path: Path, content: dict[str, Any]) -> None:
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        warnings.warn(f"the LeNet could not be stored in {path} ({error}); the next run trains it again.", stacklevel=3)


def _hash_images(images: Tensor, labels: Tensor) -> str:
    """Rounded to a thousandth: the last bit of a division on another device does not make other data."""
    digest = hashlib.sha256(labels.cpu().long().numpy().tobytes())
    for batch in images.split(5000):
        digest.update((batch.float() * 1000).round().int().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
