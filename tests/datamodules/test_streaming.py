"""Streamed rows: the same batches as from a tensor, in the same order, also after a resume."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from test_loader import Recorder, numbers

from datamodules.images import scale
from datamodules.loader import BatchLoader
from datamodules.streaming import StreamedRows, placed

N = 23


def stored(tmp_path: Path, extra: int = 7) -> torch.Tensor:
    """A memory-mapped file of more rows than are used; row i is one pixel of value i."""
    path = tmp_path / "rows.bin"
    path.write_bytes(bytes(range(N + extra)))
    return torch.from_file(str(path), shared=False, size=N + extra, dtype=torch.uint8).view(-1, 1, 1, 1)


def loader(rows: torch.Tensor | StreamedRows, **settings: int) -> BatchLoader:
    return BatchLoader(rows, lambda pixels, seed: scale(pixels, 255), 4, shuffle=True, **settings)


def test_it_stands_where_a_tensor_would(tmp_path: Path) -> None:
    pixels = stored(tmp_path)
    index = torch.randperm(len(pixels))[:N]
    whole, streamed = pixels[index], StreamedRows(pixels, index)
    assert (len(streamed), streamed.shape, streamed.dtype) == (N, whole.shape, whole.dtype)
    for choice in (slice(None), slice(3, 9), torch.tensor([5, 5, 0])):
        assert torch.equal(streamed[choice], whole[choice])
    assert streamed.to("meta").device.type == "meta"
    assert streamed.to("meta")[:].device.type == "meta"


def test_the_size_decides(tmp_path: Path) -> None:
    pixels = torch.zeros(3, 2**20, dtype=torch.uint8)
    assert isinstance(placed(pixels, torch.arange(3), 3), torch.Tensor)
    assert isinstance(placed(pixels, torch.arange(3), 2), StreamedRows)
    assert isinstance(placed(pixels, torch.arange(2), 2), torch.Tensor)
    assert len(placed(pixels[:0], torch.arange(0), 0)) == 0


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_are_those_of_the_tensor(tmp_path: Path, world_size: int) -> None:
    pixels = stored(tmp_path)
    index = torch.randperm(len(pixels))[:N]
    for rank in range(world_size):
        ranks = {"rank": rank, "world_size": world_size}
        whole, streamed = loader(pixels[index], **ranks), loader(StreamedRows(pixels, index), **ranks)
        for epoch in range(2):
            whole.set_epoch(epoch)
            streamed.set_epoch(epoch)
            batches = list(streamed)
            assert all(torch.equal(*pair) for pair in zip(whole, batches, strict=True))


@pytest.mark.parametrize("position", [0, 1, 3, 6])
def test_what_was_read_ahead_is_not_counted_and_a_resume_goes_on_exactly(tmp_path: Path, position: int) -> None:
    rows = StreamedRows(stored(tmp_path), torch.arange(N))
    whole = numbers(loader(rows))
    cut = loader(rows)
    iterator = iter(cut)
    head = numbers([next(iterator) for _ in range(position)])
    state = cut.state_dict()
    assert state == {"epoch": 0, "position": position}
    restored = loader(rows)
    restored.load_state_dict(state)
    assert head + numbers(restored) == whole


def test_an_iteration_that_is_given_up_leaves_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    iterator = iter(loader(StreamedRows(stored(tmp_path), torch.arange(N))))
    next(iterator)
    del iterator
    assert threading.active_count() == before


@pytest.mark.filterwarnings("ignore")
def test_a_run_on_streamed_rows_that_died_sees_what_it_would_have_seen(tmp_path: Path) -> None:
    rows = StreamedRows(stored(tmp_path), torch.arange(N))

    def fit(steps: int, ckpt_path: Path | None = None) -> list[list[int]]:
        model = Recorder()
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
        settings = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        run = pl.Trainer(accelerator="cpu", callbacks=[keep], max_steps=steps, **settings)  # type: ignore[arg-type]
        run.fit(model, loader(rows), ckpt_path=ckpt_path)
        return model.seen

    uncut = fit(12)
    assert uncut[:6] == numbers(loader(rows))
    fit(6)
    assert fit(12, tmp_path / "step=4.ckpt") == uncut[4:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_reach_the_gpu_whole(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (5000, 3, 64, 64), dtype=torch.uint8)
    order = torch.randperm(5000)
    streamed = StreamedRows(pixels, torch.arange(5000), "cuda:0")
    batches = [batch.float().mean((1, 2, 3)) for batch in streamed.batches(order.split(100))]
    torch.testing.assert_close(torch.cat(batches).cpu(), pixels[order].float().mean((1, 2, 3)))
