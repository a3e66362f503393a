"""Digits: real scans, split by seed, binarised anew at each step or grey."""

import pytest
import torch
from sklearn.datasets import load_digits

from datamodules import Digits
from lightning_alws.errors import UserError


def ready(**settings):
    data = Digits(**settings)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("binarize", [True, False])
def test_what_is_known_before_reading(binarize):
    data = Digits(binarize=binarize)
    assert data.image_shape == (1, 8, 8)
    assert data.num_classes == 10
    assert (data.likelihood, data.name) == (("bernoulli", "Digits") if binarize else ("gaussian", "Digits-grey"))
    assert dict(data.hparams) == {
        "batch_size": 100,
        "eval_batch_size": 500,
        "validation_size": 150,
        "seed": 0,
        "binarize": binarize,
    }


def test_grey_images_are_the_scans_split_three_ways():
    data = ready(binarize=False)
    assert data.sizes == {"train": 1350, "val": 150, "test": 297}
    scans = load_digits()
    expected = torch.from_numpy(scans.images).float().flatten(1) / 8 - 1
    images = torch.cat([data.images(split).flatten(1) for split in ("train", "val", "test")])
    labels = torch.cat([data.labels(split) for split in ("train", "val", "test")])
    found = torch.column_stack([images, labels])
    wanted = torch.column_stack([expected, torch.from_numpy(scans.target)])
    assert sorted(found.tolist()) == sorted(wanted.tolist())
    assert (images.min(), images.max()) == (-1, 1)


def test_the_test_digits_depend_on_the_seed_alone():
    test = ready(binarize=False).images("test")
    assert torch.equal(test, ready(binarize=False, validation_size=700, batch_size=7).images("test"))
    assert not torch.equal(test, ready(binarize=False, seed=1).images("test"))


def test_training_digits_are_redrawn_about_their_grey_values():
    data, grey = ready(batch_size=1350), ready(binarize=False)
    batches = data.train_dataloader()
    draws = []
    for epoch in range(30):
        batches.set_epoch(epoch)
        (batch,) = batches
        assert batch.shape == (1350, 1, 8, 8)
        assert set(batch.unique().tolist()) == {0.0, 1.0}
        draws.append(batch[batches.indices(epoch).argsort()])  # back in the order of the split
    probability = (grey.images("train") + 1) / 2
    draws = torch.stack(draws)
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws.mean(0)[probability == 1], torch.ones(int((probability == 1).sum())))
    error = (draws.mean(0) - probability).square().mean()
    expected = (probability * (1 - probability)).mean() / 30
    assert error == pytest.approx(expected.item(), rel=0.05)


def test_evaluation_digits_are_drawn_once():
    data = ready()
    for split, batches in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        for epoch in range(2):
            batches.set_epoch(epoch)
            assert torch.equal(torch.cat(list(batches)), data.images(split))
        assert torch.equal(data.images(split), ready().images(split))
        grey = (ready(binarize=False).images(split) + 1) / 2
        assert abs(data.images(split).mean() - grey.mean()) < 0.02
        assert not data.images(split)[grey == 0].any()
    assert torch.equal(data.images("train"), data.images("train"))


def test_too_many_validation_digits():
    with pytest.raises(UserError, match="validation_size=1500 takes all 1500 training images of Digits"):
        ready(validation_size=1500)
