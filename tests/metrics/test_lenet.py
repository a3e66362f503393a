"""The LeNet: shapes, what it learns, and that its cache never gives back the wrong network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.metrics import lenet
from lightning_alws.metrics.lenet import Extractor, LeNet, cached_lenet, default_epochs, train_lenet

Data = tuple[Tensor, Tensor, Tensor, Tensor]

pytestmark = pytest.mark.filterwarnings("error:the LeNet")  # no retraining where a test does not expect it


@pytest.fixture
def data() -> Data:
    """Horizontal against vertical stripes in noise, 64 for training and 32 for validation."""
    labels = torch.arange(96) % 2
    stripes = (torch.arange(8) % 2).float().expand(1, 8, 8)
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, stripes, stripes.mT) + 0.3 * torch.randn(96, 1, 8, 8)
    return images[:64], labels[:64], images[64:], labels[64:]


@pytest.fixture
def cache(data: Data, tmp_path: Path) -> Callable[..., Extractor]:
    def call(name: str = "stripes", width: int = 16, epochs: int = 4, images: Tensor | None = None) -> Extractor:
        return cached_lenet(tmp_path, name, data[0] if images is None else images, *data[1:], width, epochs)

    return call


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_shapes(shape: tuple[int, ...]) -> None:
    network = LeNet(shape, 10, 84)
    x = torch.randn(5, *shape)
    assert network.features(x).shape == (5, 84)
    assert (network.features(x) >= 0).all()
    assert network(x).shape == (5, 10)


def test_tiny_images_are_refused() -> None:
    with pytest.raises(UserError, match="4 × 4"):
        LeNet((1, 3, 8), 10, 84)


def test_learns_and_repeats_itself_without_touching_the_global_generator(data: Data) -> None:
    before = torch.get_rng_state()
    first, accuracy = train_lenet(*data, width=16, epochs=20, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert accuracy == 1
    torch.randn(7)
    again, _ = train_lenet(*data, width=16, epochs=20, seed=1)
    other, _ = train_lenet(*data, width=16, epochs=20, seed=2)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.slow
def test_reads_digits() -> None:
    digits = load_digits()
    order = torch.randperm(1797)
    images, labels = torch.tensor(digits.images).float()[order, None] / 8 - 1, torch.tensor(digits.target)[order]
    _, accuracy = train_lenet(
        images[:1350], labels[:1350], images[1350:], labels[1350:], width=64, epochs=default_epochs(1350), seed=0
    )
    assert accuracy > 0.95


def test_labels_that_do_not_fit_are_refused(data: Data) -> None:
    with pytest.raises(UserError, match="64 training images and 32 labels"):
        train_lenet(data[0], data[3], data[2], data[3], width=16, epochs=1, seed=0)


def test_trains_under_inference_mode(cache: Callable[..., Extractor]) -> None:
    with torch.inference_mode():
        extractor = cache()
    assert not any(parameter.is_inference() for parameter in extractor.module.parameters())


def test_second_call_reads_the_first_ones_network(
    cache: Callable[..., Extractor], data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache()
    monkeypatch.setattr(lenet, "train_lenet", None)
    second = cache()
    assert (first.name, first.hash, first.accuracy) == (second.name, second.hash, second.accuracy)
    assert first.name == "lenet-stripes-16"
    assert len(first.hash) == 12
    torch.testing.assert_close(first.features(data[0]), second.features(data[0].double(), batch_size=7))
    assert first.features(data[0]).shape == (64, 16)
    assert not second.module.training
    assert not any(parameter.requires_grad for parameter in second.module.parameters())
    assert only_file(tmp_path).name == "lenet-stripes-16.pt"


def flip_a_weight(path: Path) -> None:
    stored = torch.load(path, weights_only=True)
    stored["weights"]["head.bias"][0] += 1
    torch.save(stored, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def empty(path: Path) -> None:
    torch.save({}, path)


@pytest.mark.parametrize("damage", [flip_a_weight, cut, empty])
def test_a_damaged_file_is_replaced(
    cache: Callable[..., Extractor], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    first = cache()
    damage(only_file(tmp_path))
    with pytest.warns(UserWarning, match="cannot be read"):
        second = cache()
    assert first.hash == second.hash
    assert cache().hash == first.hash  # without a warning now


def test_other_images_train_another_network(cache: Callable[..., Extractor], data: Data) -> None:
    first = cache()
    with pytest.warns(UserWarning, match=r"\(images differ\)"):
        assert cache(images=data[0].flip(3)).hash != first.hash
    with pytest.warns(UserWarning, match=r"\(epochs, images differ\)"):
        cache(epochs=5)


def test_rounding_on_another_device_is_no_other_data(cache: Callable[..., Extractor], data: Data) -> None:
    images = (data[0] * 255).round() / 255
    assert not torch.equal(images, images * (1 + 1e-7))
    assert cache(images=images).hash == cache(images=images * (1 + 1e-7)).hash


def test_names_are_safe_and_distinct_files(cache: Callable[..., Extractor], tmp_path: Path) -> None:
    cache(name="a/b"), cache(name="ab")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lenet-a_b-16.pt", "lenet-ab-16.pt"]


def test_default_folder(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALWS_CACHE", str(tmp_path / "new" / "folder"))
    cached_lenet(None, "stripes", *data, width=16, epochs=1)
    assert only_file(tmp_path / "new" / "folder").suffix == ".pt"


def test_an_unwritable_cache_costs_a_warning(cache: Callable[..., Extractor], monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.warns(UserWarning, match="no space left"):
        assert cache().accuracy > 0
