"""MNIST and Fashion-MNIST: grey, padded, scaled, split by seed."""

import pytest
import torch

from datamodules import MNIST, FashionMNIST
from datamodules.idx import IdxFolder
from lightning_alws.errors import UserError

KINDS = [MNIST, FashionMNIST]


def ready(kind, root, **settings):
    data = kind(root=str(root), download=False, **settings)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_before_reading(kind):
    data = kind(root="nowhere")
    assert data.image_shape == (1, 32, 32)
    assert (data.likelihood, data.num_classes, data.name) == ("gaussian", 10, kind.__name__)
    assert dict(data.hparams) == {
        "batch_size": 100,
        "eval_batch_size": 500,
        "validation_size": 5000,
        "seed": 0,
        "root": "nowhere",
        "download": True,
        "padding": 2,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_the_files_scaled_with_a_black_border(idx_root, kind):
    root = idx_root(kind.__name__)
    data = ready(kind, root, validation_size=10)
    assert data.sizes == {"train": 50, "val": 10, "test": 20}
    pixels, labels = IdxFolder(str(root), kind.__name__).read("test", 10)
    images = data.images("test")
    assert images.shape == (20, 1, 32, 32)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[..., 2:-2, 2:-2], pixels.float() / 127.5 - 1)
    assert torch.equal(data.labels("test"), labels)
    border = torch.ones(32, 32, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    for split in ("train", "val", "test"):
        assert (data.images(split)[..., border] == -1).all()
        assert data.images(split).max() == 1


@pytest.mark.parametrize("padding", [0, 3])
def test_padding_is_a_setting(idx_root, padding):
    root = idx_root()
    data = ready(MNIST, root, validation_size=10, padding=padding)
    assert (data.image_shape, data.name) == ((1, 28 + 2 * padding, 28 + 2 * padding), f"MNIST-{28 + 2 * padding}")
    images, usual = data.images("val"), ready(MNIST, root, validation_size=10).images("val")
    assert images.shape[1:] == data.image_shape
    inner = images[..., padding : padding + 28, padding : padding + 28]
    assert torch.equal(inner, usual[..., 2:-2, 2:-2])
    border = torch.ones(images.shape[2:], dtype=torch.bool)
    border[padding : padding + 28, padding : padding + 28] = False
    assert (images[..., border] == -1).all()
    with pytest.raises(UserError, match=r"data\.padding is -1"):
        MNIST(padding=-1)


def test_validation_is_a_seeded_part_of_the_training_files(idx_root):
    root = idx_root()
    pixels, labels = IdxFolder(str(root), "MNIST").read("train", 10)
    everything = sorted(zip(pixels.flatten(1).tolist(), labels.tolist(), strict=True))

    def rows(data, split):
        inner = ((data.images(split)[..., 2:-2, 2:-2] + 1) * 127.5).round().int().flatten(1)
        return list(zip(inner.tolist(), data.labels(split).tolist(), strict=True))

    data = ready(MNIST, root, validation_size=10)
    assert sorted(rows(data, "train") + rows(data, "val")) == everything
    assert rows(data, "val") == rows(ready(MNIST, root, validation_size=10), "val")
    assert rows(data, "val") != rows(ready(MNIST, root, validation_size=10, seed=1), "val")


def test_batches(idx_root):
    data = ready(MNIST, idx_root(), batch_size=20, eval_batch_size=15, validation_size=10)
    assert [tuple(batch.shape) for batch in data.train_dataloader()] == [(20, 1, 32, 32)] * 2 + [(10, 1, 32, 32)]
    assert torch.equal(torch.cat(list(data.test_dataloader())), data.images("test"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_real_files(real_root, kind):
    data = ready(kind, real_root)
    assert data.sizes == {"train": 55000, "val": 5000, "test": 10000}
    assert torch.cat([data.labels("train"), data.labels("val")]).bincount().sum() == 60000
    mean = {"MNIST": 0.1307, "FashionMNIST": 0.2860}[kind.__name__]  # the figures everyone normalises with
    inner = torch.cat([data.images(split)[..., 2:-2, 2:-2] for split in ("train", "val")])
    assert ((inner.mean() + 1) / 2).item() == pytest.approx(mean, abs=1e-4)
