"""BinarizedMNIST: drawn once, or anew at each step, with the grey value as probability."""

import pytest
import torch

from datamodules import MNIST, BinarizedMNIST


def ready(kind, root, **settings):
    data = kind(root=str(root), download=False, **settings)
    data.prepare_data()
    data.setup()
    return data


def epoch_in_split_order(data, epoch):
    batches = data.train_dataloader()
    batches.set_epoch(epoch)
    return torch.cat(list(batches))[batches.indices(epoch).argsort()]


@pytest.mark.parametrize("dynamic", [False, True])
def test_what_is_known_before_reading(dynamic):
    data = BinarizedMNIST(root="nowhere", dynamic=dynamic)
    assert data.image_shape == (1, 32, 32)
    assert (data.likelihood, data.num_classes) == ("bernoulli", 10)
    assert data.name == ("BinarizedMNIST-dynamic" if dynamic else "BinarizedMNIST")
    assert dict(data.hparams) == {
        "batch_size": 100,
        "eval_batch_size": 500,
        "validation_size": 5000,
        "seed": 0,
        "root": "nowhere",
        "download": True,
        "dynamic": dynamic,
        "padding": 2,
    }


@pytest.mark.parametrize("dynamic", [False, True])
def test_pixels_are_drawn_with_their_grey_value_and_the_border_is_black(idx_root, dynamic):
    root = idx_root()
    data = ready(BinarizedMNIST, root, validation_size=10, dynamic=dynamic)
    grey = ready(MNIST, root, validation_size=10)
    for split in ("train", "val", "test"):
        images, probability = data.images(split), (grey.images(split) + 1) / 2
        assert images.shape == probability.shape
        assert torch.equal(data.labels(split), grey.labels(split))
        assert set(images.unique().tolist()) == {0.0, 1.0}
        assert not images[probability == 0].any()  # the border too
        assert images[probability == 1].all()
        spread = (probability * (1 - probability)).mean().div(images.numel()).sqrt()
        assert abs(images.mean() - probability.mean()) < 4 * spread
        assert not images[..., :2, :].any()


def test_static_images_never_change(idx_root):
    root = idx_root()
    data = ready(BinarizedMNIST, root, validation_size=10)
    for epoch in range(2):
        assert torch.equal(epoch_in_split_order(data, epoch), data.images("train"))
    again = ready(BinarizedMNIST, root, validation_size=10)
    other = ready(BinarizedMNIST, root, validation_size=10, seed=1)
    for split in ("train", "val", "test"):
        assert torch.equal(data.images(split), again.images(split))
        assert not torch.equal(data.images(split), other.images(split))


def test_dynamic_training_images_are_redrawn_and_the_others_are_not(idx_root):
    root = idx_root()
    data = ready(BinarizedMNIST, root, validation_size=10, dynamic=True)
    static = ready(BinarizedMNIST, root, validation_size=10)
    draws = [epoch_in_split_order(data, epoch) for epoch in range(2)]
    assert not torch.equal(*draws)
    assert torch.equal(draws[0], epoch_in_split_order(data, 0))
    assert torch.equal(data.images("train"), data.images("train"))
    for split in ("val", "test"):
        assert torch.equal(data.images(split), static.images(split))


def test_without_padding(idx_root):
    data = ready(BinarizedMNIST, idx_root(), validation_size=10, padding=0)
    assert (data.image_shape, data.name) == ((1, 28, 28), "BinarizedMNIST-28")
    assert data.images("train").shape == (50, 1, 28, 28)


@pytest.mark.slow
def test_the_real_files(real_root):
    data, grey = (ready(kind, real_root) for kind in (BinarizedMNIST, MNIST))
    for split in ("train", "test"):
        assert abs(data.images(split).mean() - (grey.images(split).mean() + 1) / 2) < 1e-3
