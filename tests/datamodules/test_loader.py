"""The loader: order, shards, seeds, and the state that lets a run continue where it was."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from datamodules import BatchLoader
from datamodules.images import binarise, scale
from lightning_alws.errors import UserError

N = 23  # not a multiple of any batch size or number of ranks used here


def numbers(batches):
    """Which images the batches hold, one list a batch."""
    return [((batch.flatten() + 1) * 127.5).round().int().tolist() for batch in batches]


def flat(lists):
    return [i for part in lists for i in part]


def loader(n=N, batch_size=4, **settings):
    pixels = torch.arange(n, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return BatchLoader(pixels, lambda pixels, seed: scale(pixels, 255), batch_size, **settings)


def epoch_of(loader, epoch):
    loader.set_epoch(epoch)
    return numbers(loader)


def test_an_epoch_holds_every_image_once_in_float_batches():
    batches = list(loader(shuffle=True))
    assert [batch.shape for batch in batches] == [(4, 1, 1, 1)] * 5 + [(3, 1, 1, 1)]
    assert all(batch.dtype == torch.float32 for batch in batches)
    assert sorted(flat(numbers(batches))) == list(range(N))
    assert len(loader()) == 6


def test_the_order_follows_from_seed_and_epoch():
    one, two = loader(shuffle=True, seed=1), loader(shuffle=True, seed=1)
    assert epoch_of(one, 3) == epoch_of(two, 3) == epoch_of(one, 3)
    assert epoch_of(one, 3) != epoch_of(one, 4)
    assert epoch_of(one, 3) != epoch_of(loader(shuffle=True, seed=2), 3)
    assert flat(epoch_of(loader(), 5)) == list(range(N))


def test_the_epoch_counts_that_is_set_before_the_first_batch_is_asked_for():
    early = loader(shuffle=True)
    iterator = iter(early)  # as Lightning does
    early.sampler.set_epoch(2)
    assert numbers(iterator) == epoch_of(loader(shuffle=True), 2)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_training_shards_are_disjoint_and_of_equal_length(world_size):
    shards = [loader(shuffle=True, rank=r, world_size=world_size) for r in range(world_size)]
    batches = [epoch_of(shard, 1) for shard in shards]
    assert len({tuple(len(b) for b in shard) for shard in batches}) == 1
    assert all(len(shard) == len(held) for shard, held in zip(shards, batches, strict=True))
    seen = flat(flat(batches))
    assert len(seen) == len(set(seen)) == N - N % world_size
    # what one epoch leaves out is not what the next leaves out
    left_out = {frozenset(range(N)).difference(*(flat(epoch_of(s, e)) for s in shards)) for e in range(5)}
    assert len(left_out) > 1 or N % world_size == 0


@pytest.mark.parametrize("world_size", [2, 3, 30])
def test_evaluation_shards_wrap_around_and_leave_no_image_out(world_size):
    shards = [numbers(loader(rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({tuple(len(b) for b in shard) for shard in shards}) == 1
    seen = flat(flat(shards))
    assert set(seen) == set(range(N))
    assert len(seen) < N + world_size


def test_draws_depend_on_rank_epoch_and_batch_and_on_nothing_else():
    grey = torch.full((8, 1, 8, 8), 100, dtype=torch.uint8)

    def draw(epoch=0, **settings):
        drawn = BatchLoader(grey, lambda pixels, seed: binarise(pixels, 255, seed), 4, **settings)
        drawn.set_epoch(epoch)
        return torch.stack(list(drawn))

    first = draw()
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(first, draw())
    assert not torch.equal(first[0], first[1])
    for other in (draw(epoch=1), draw(seed=1)):
        assert not torch.equal(first, other)
    ranks = [draw(rank=r, world_size=2) for r in range(2)]
    assert not torch.equal(*ranks)


def test_binarising_gives_one_with_the_probability_of_the_pixel():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).repeat(100_000, 1)
    means = binarise(pixels, 255, seed=0).mean(0)
    assert means[0] == 0  # never
    assert means[2] == 1  # always
    assert abs(means[1] - 0.2) < 0.005  # four standard errors


def test_black_is_minus_one_and_white_is_one():
    for white in (16, 255):
        assert scale(torch.tensor([0, white], dtype=torch.uint8), white).tolist() == [-1.0, 1.0]


def test_a_restored_loader_continues_at_the_next_batch_then_from_the_start():
    whole = epoch_of(loader(shuffle=True), 2)
    cut = loader(shuffle=True)
    cut.set_epoch(2)
    iterator = iter(cut)
    head = numbers([next(iterator), next(iterator)])
    state = cut.state_dict()
    assert state == {"epoch": 2, "position": 2}
    restored = loader(shuffle=True)
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    restored.set_epoch(2)
    assert head + numbers(restored) == whole
    assert numbers(restored) == whole
    assert restored.state_dict() == {"epoch": 2, "position": 6}


def test_another_epoch_starts_at_its_first_batch():
    left = loader(shuffle=True)
    next(iter(left))
    left.set_epoch(0)
    assert left.state_dict() == {"epoch": 0, "position": 1}
    left.set_epoch(1)
    assert left.state_dict() == {"epoch": 1, "position": 0}
    assert numbers(left) == epoch_of(loader(shuffle=True), 1)


def test_a_restored_loader_finishes_its_epoch_although_lightning_counted_it():
    reference = loader(shuffle=True)
    restored = loader(shuffle=True)
    restored.load_state_dict({"epoch": 0, "position": 4})
    stream = epoch_of(restored, 1) + epoch_of(restored, 2)
    assert stream == epoch_of(reference, 0)[4:] + epoch_of(reference, 1)


def test_a_loader_restored_at_the_end_of_an_epoch_goes_on_with_the_next():
    restored = loader(shuffle=True)
    restored.load_state_dict({"epoch": 0, "position": 6})
    restored.set_epoch(1)
    restored.set_epoch(2)  # epoch 1 was counted without a batch
    assert numbers(restored) == epoch_of(loader(shuffle=True), 1)


def test_a_loader_without_images_or_with_empty_batches_is_refused():
    with pytest.raises(UserError, match=r"^0 rows are too few for world_size=1"):
        loader(n=0)
    with pytest.raises(UserError, match=r"^2 rows are too few for world_size=3"):
        loader(n=2, shuffle=True, world_size=3)
    with pytest.raises(UserError, match=r"^batch_size=0 is below 1; set it"):
        loader(batch_size=0)


class Recorder(pl.LightningModule):
    """Notes the images of every training batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen += numbers([batch])
        return self.weight * batch.mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, ckpt_path=None, every=None, save=None, **settings):
    """Train on six batches an epoch and return what was seen."""
    model = Recorder()
    callbacks = [ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)] if every else []
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, loader(shuffle=True), loader(n=7), ckpt_path=ckpt_path)
    if save:
        trainer.save_checkpoint(save)
    return model.seen


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("uncut"), max_epochs=3)


def test_a_run_sees_the_epochs_in_turn(uncut):
    assert uncut == flat(epoch_of(loader(shuffle=True), epoch) for epoch in range(3))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("goal", [{"max_epochs": 3}, {"max_steps": 18}], ids=str)
@pytest.mark.parametrize("step", [4, 6, 8, 12])
def test_a_run_that_died_sees_after_resuming_what_it_would_have_seen(tmp_path, uncut, step, goal):
    """Steps 6 and 12 are the ends of epochs."""
    fit(tmp_path, every=step, max_steps=15)  # dies after the checkpoint; batches beyond it are seen again
    assert fit(tmp_path, ckpt_path=tmp_path / f"step={step}.ckpt", **goal) == uncut[step:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [4, 6, 8, 12])
def test_a_run_cut_by_max_steps_and_prolonged_sees_what_it_would_have_seen(tmp_path, uncut, step):
    """Saved after the fit: Lightning counts the cut epoch as a whole one."""
    first = fit(tmp_path, save=tmp_path / "cut.ckpt", max_steps=step)
    second = fit(tmp_path, ckpt_path=tmp_path / "cut.ckpt", max_steps=18)
    assert first + second == uncut
