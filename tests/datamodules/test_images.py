"""The base class: splits, seeds, ranks, devices and errors."""

from types import SimpleNamespace

import pytest
import torch

from datamodules import ImageDataModule
from lightning_alws.errors import UserError

N = 23  # training images, not a multiple of any batch size used here


class Numbered(ImageDataModule):
    """Image i is one pixel of value i, so that a batch tells which images it holds."""

    image_shape = (1, 1, 1)
    num_classes = 10
    white = 255
    likelihood = "gaussian"

    def __init__(self, batch_size=4, eval_batch_size=3, validation_size=4, seed=0, redraws=False):
        super().__init__(batch_size, eval_batch_size, validation_size, seed)
        self.redraws = redraws
        if redraws:
            self.likelihood = "bernoulli"
        self.reads = 0

    def read_images(self):
        self.reads += 1
        pixels = torch.arange(N + 4, dtype=torch.uint8).reshape(-1, 1, 1, 1)
        return (pixels, torch.arange(N + 4) % 10), (pixels[:7] + 100, torch.arange(7) % 10)


def numbers(batches):
    """Which images the batches hold, one list a batch."""
    return [((batch.flatten() + 1) * 127.5).round().int().tolist() for batch in batches]


def ready(**settings):
    data = Numbered(**settings)
    data.setup()
    return data


def attached(rank=0, world_size=1, device="cpu", overfit_batches=0, **settings):
    """A data module as a trainer would hold it."""
    data = Numbered(**settings)
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        overfit_batches=overfit_batches,
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )
    data.setup()
    return data


def test_splits_are_disjoint_complete_and_seeded():
    def split(seed):
        data = ready(seed=seed)
        train, val = (numbers([data.images(s)])[0] for s in ("train", "val"))
        for s in ("train", "val", "test"):
            assert torch.equal(data.labels(s), torch.tensor(numbers([data.images(s)])[0]) % 100 % 10)
        assert numbers([data.images("test")]) == [list(range(100, 107))]
        return train, val

    train, val = split(0)
    assert len(val) == 4
    assert sorted(train + val) == list(range(N + 4))
    assert split(0) == (train, val)
    assert set(split(1)[1]) != set(val)


def test_data_are_read_once():
    data = ready()
    before = data.images("train")
    data.setup("test")
    assert data.reads == 1
    assert torch.equal(before, data.images("train"))
    assert data.sizes == {"train": N, "val": 4, "test": 7}


def test_loaders_are_of_their_split_and_batch_size():
    data = ready()
    train = torch.cat(list(data.train_dataloader())).flatten()
    assert torch.equal(train.sort()[0], data.images("train").flatten().sort()[0])
    for split, batches in (
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
        ("test", data.predict_dataloader()),
    ):
        assert torch.equal(torch.cat(list(batches)), data.images(split))
        assert len(next(iter(batches))) == 3


def test_redrawn_training_images_are_new_in_every_epoch_and_one_fixed_draw_as_a_whole():
    data = ready(redraws=True)
    batches = data.train_dataloader()
    draws = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        draws.append(torch.cat(list(batches))[batches.indices(epoch).argsort()])  # back in the order of the split
    assert not torch.equal(*draws)
    for split in ("train", "val", "test"):
        assert torch.equal(data.images(split), data.images(split))
    assert torch.equal(torch.cat(list(data.test_dataloader())), data.images("test"))


@pytest.mark.parametrize("redraws", [False, True])
def test_the_global_generator_is_untouched(redraws):
    before = torch.get_rng_state()
    data = ready(redraws=redraws)
    for batches in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        list(batches)
    for split in ("train", "val", "test"):
        data.images(split)
    assert torch.equal(before, torch.get_rng_state())


def test_rank_and_number_of_ranks_come_from_the_trainer():
    shards = [torch.cat(list(attached(rank, 2).train_dataloader())).flatten().tolist() for rank in range(2)]
    assert len(shards[0]) == len(shards[1]) == N // 2
    assert not set(shards[0]) & set(shards[1])
    assert [len(torch.cat(list(attached(rank, 2).test_dataloader()))) for rank in range(2)] == [4, 4]


def test_images_lie_on_the_trainers_device_even_if_read_before():
    data = ready()
    data.trainer = attached(device="meta").trainer
    data.setup()
    assert data.reads == 1
    assert data.images("train").device.type == data.labels("test").device.type == "meta"


def test_overfit_batches_repeats_one_order():
    batches = attached(overfit_batches=1).train_dataloader()
    first = numbers(batches)
    batches.set_epoch(1)
    assert numbers(batches) == first


def test_a_batch_on_its_device_is_handed_on_itself():
    data = Numbered()
    batch = torch.zeros(2, 1, 1, 1)
    assert data.transfer_batch_to_device(batch, batch.device, 0) is batch
    assert data.transfer_batch_to_device(batch, torch.device("meta"), 0).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_are_made_on_the_gpu():
    data, on_cpu = attached(device="cuda:0", redraws=True), ready(redraws=True)
    before = torch.cuda.get_rng_state()
    assert all(batch.is_cuda for batch in data.train_dataloader())
    assert torch.equal(before, torch.cuda.get_rng_state())
    for split in ("train", "val", "test"):
        assert torch.equal(data.images(split).cpu(), on_cpu.images(split))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"^batch_size=0 is below 1; set it"),
        ({"eval_batch_size": -2}, r"^eval_batch_size=-2 is below 1; set it"),
        ({"validation_size": -1}, r"^validation_size=-1 is negative; set it"),
        ({"validation_size": 27}, r"^validation_size=27 takes all 27 training images of Numbered; set it below 27"),
    ],
)
def test_sizes_out_of_range_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        ready(**settings)


def test_a_split_without_images_has_no_loader():
    data = ready(validation_size=0)
    assert data.sizes["val"] == 0
    with pytest.raises(UserError, match=r"has no val data; set its val size \(validation_size for val\) above 0"):
        data.val_dataloader()


def test_an_unknown_split_and_a_forgotten_setup():
    data = Numbered()
    with pytest.raises(RuntimeError, match="setup"):
        data.images("train")
    data.setup()
    for ask in (data.images, data.labels):
        with pytest.raises(ValueError, match="'training'; choose one of train, val, test"):
            ask("training")
