"""The pictures of a run, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from runs import Images, Numbers, image_model, trainer
from torch import Tensor

from callbacks.image_data import random_images
from callbacks.sample_grid import SampleGrid, picture, save_arrays, save_png
from lightning_alws.errors import UserError
from lightning_alws.metrics.pixels import to_unit

ROWS = 2
GAP = 16


def read(path: Path) -> Tensor:
    """A PNG file as (3, height, width) of 0..255."""
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).int()


def tile(panel: Tensor, index: int, size: int, columns: int) -> Tensor:
    """One image of a panel of images ``size`` pixels wide, each in a frame of one pixel."""
    row, column = divmod(index, columns)
    top, left = 1 + row * (size + 1), 1 + column * (size + 1)
    return panel[:, top : top + size, left : left + size]


def panels(image: Tensor, size: int, columns: int) -> list[Tensor]:
    """The real images, the samples and the means."""
    width = 1 + columns * (size + 1)
    assert image.shape[2] == 3 * width + 2 * GAP
    return [image[:, :, start : start + width] for start in range(0, 3 * (width + GAP) - GAP, width + GAP)]


def enlarged(image: Tensor, factor: int) -> Tensor:
    """(C, H, W) in [0, 1] as (3, factor · H, factor · W) of 0..255."""
    return (image.expand(3, -1, -1).repeat_interleave(factor, 1).repeat_interleave(factor, 2) * 255).round().int()


def shown_of(data: Images, split: str, count: int = ROWS**2) -> Tensor:
    """The real images on the page, in their order: what seed 0 picks where the data have none of their own."""
    return random_images(data, split, count, 0, "sample_grid", split)


CASES = [
    ("bernoulli", (1, 8, 8), 4),
    ("gaussian", (1, 8, 8), 4),
    ("gaussian", (3, 8, 8), 4),
    ("gaussian", (1, 40, 40), 1),
]


@pytest.mark.parametrize(("likelihood", "shape", "factor"), CASES, ids=str)
def test_real_images_left_samples_in_the_middle_means_right(
    tmp_path: Path, likelihood: str, shape: tuple[int, int, int], factor: int
) -> None:
    data, model = Images(likelihood, shape), image_model(likelihood, shape)
    trainer(tmp_path, [SampleGrid(ROWS)]).fit(model, datamodule=data)
    (path,) = (tmp_path / "samples").iterdir()
    assert path.name == "step_000004.png"
    image, size = read(path), shape[-1] * factor
    assert image.shape == (3, 1 + ROWS * (size + 1), 3 * (1 + ROWS * (size + 1)) + 2 * GAP)
    real, samples, means = panels(image, size, ROWS)
    for index in range(ROWS**2):
        original = shown_of(data, "val")[index]
        unit = original if likelihood == "bernoulli" else (original + 1) / 2
        torch.testing.assert_close(tile(real, index, size, ROWS), enlarged(unit, factor), rtol=0, atol=1)
    inside = tile(samples, 0, size, ROWS)
    if likelihood == "bernoulli":
        assert set(inside.unique().tolist()) == {0, 255}
        assert 0 < tile(means, 0, size, ROWS).float().mean() < 255
        assert len(tile(means, 0, size, ROWS).unique()) > 2
    # Every pixel of an image is a square of equal pixels.
    assert torch.equal(inside, inside[:, ::factor, ::factor].repeat_interleave(factor, 1).repeat_interleave(factor, 2))


def test_same_latents_each_time(tmp_path: Path) -> None:
    """An unchanged model is drawn the same, whatever the state of the global generator; a trained one is not."""
    model, data = image_model(learning_rate=1e-30), Images()
    torch.manual_seed(1)
    trainer(tmp_path, [SampleGrid(ROWS)], max_steps=4, val_check_interval=2).fit(model, datamodule=data)
    torch.manual_seed(2)
    trainer(tmp_path, [SampleGrid(ROWS)], max_steps=3, val_check_interval=3).fit(model, datamodule=data)
    trained = image_model(learning_rate=0.3)
    trained.load_state_dict(model.state_dict())
    trainer(tmp_path / "trained", [SampleGrid(ROWS)], max_steps=4).fit(trained, datamodule=data)
    files = [tmp_path / "samples" / f"step_00000{step}.png" for step in (2, 3, 4)]
    first, second, third = (file.read_bytes() for file in files)
    assert first == second == third
    other = read(tmp_path / "trained" / "samples" / "step_000004.png")
    (real, *generated), (real_after, *generated_after) = (panels(x, 32, ROWS) for x in (read(files[0]), other))
    assert torch.equal(real, real_after)
    assert not torch.equal(generated[1], generated_after[1])


def test_the_averaged_model_is_drawn(tmp_path: Path) -> None:
    model = image_model(averaging=0.9)
    trainer(tmp_path, [SampleGrid(ROWS)], max_steps=4).fit(model, datamodule=Images())
    with torch.no_grad():
        for parameter in model.generative.parameters():
            parameter.fill_(100.0)
    trainer(tmp_path, [SampleGrid(ROWS)]).test(model, datamodule=Images(), verbose=False)
    before, after = (panels(read(tmp_path / "samples" / f), 32, ROWS) for f in ("step_000004.png", "test.png"))
    assert torch.equal(before[2], after[2])


def test_test_shows_test_images(tmp_path: Path) -> None:
    data = Images()
    trainer(tmp_path, [SampleGrid(ROWS)]).test(image_model(), datamodule=data, verbose=False)
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == ["test.npz", "test.png"]
    real, _, _ = panels(read(tmp_path / "samples" / "test.png"), 32, ROWS)
    for index in range(ROWS**2):
        assert torch.equal(tile(real, index, 32, ROWS), enlarged(shown_of(data, "test")[index], 4))


def test_real_images_are_picked_by_the_datas_seed_alone(tmp_path: Path) -> None:
    """A folder in order of its classes would otherwise show one class; runs on the same data show the same images."""
    levels = (torch.arange(40.0) / 39).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    pages = []
    for number, (run_seed, data_seed) in enumerate([(0, 0), (1, 0), (0, 1)]):
        data = Images(splits=dict.fromkeys(("train", "val", "test"), levels))
        data.seed = data_seed  # type: ignore[attr-defined]
        torch.manual_seed(run_seed)
        run = trainer(tmp_path / str(number), [SampleGrid(ROWS)])
        run.test(image_model(), datamodule=data, verbose=False)
        page = panels(read(tmp_path / str(number) / "samples" / "test.png"), 32, ROWS)[0]
        pages.append([float(tile(page, index, 32, ROWS).float().mean()) for index in range(ROWS**2)])
    assert pages[0] == pages[1] != pages[2]
    assert len(set(pages[0])) == ROWS**2
    assert max(pages[0]) > 40  # not the first ones, which are the darkest


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_test_leaves_arrays_of_what_it_shows(tmp_path: Path, likelihood: str) -> None:
    data = Images(likelihood)
    trainer(tmp_path, [SampleGrid(ROWS)]).test(image_model(likelihood), datamodule=data, verbose=False)
    shown = panels(read(tmp_path / "samples" / "test.png"), 32, ROWS)
    with np.load(tmp_path / "samples" / "test.npz") as arrays:
        assert sorted(arrays) == ["means", "real", "samples"]
        for name, panel in zip(("real", "samples", "means"), shown, strict=True):
            assert arrays[name].dtype == np.uint8
            assert arrays[name].shape == (ROWS**2, 1, 8, 8)
            for index, image in enumerate(arrays[name]):
                large = torch.from_numpy(image).int().repeat_interleave(4, 1).repeat_interleave(4, 2)
                assert torch.equal(tile(panel, index, 32, ROWS), large.expand(3, -1, -1))


@pytest.mark.parametrize(("shape", "kept"), [((1, 32, 32), 64), ((3, 64, 64), 28)], ids=str)
def test_arrays_stay_below_a_megabyte(tmp_path: Path, shape: tuple[int, int, int], kept: int) -> None:
    """Noise, which no compression makes smaller."""
    save_arrays(torch.rand(64, *shape), torch.rand(64, *shape), torch.rand(64, *shape), tmp_path / "test.npz")
    assert (tmp_path / "test.npz").stat().st_size < 2**20
    with np.load(tmp_path / "test.npz") as arrays:
        assert [len(arrays[name]) for name in ("real", "samples", "means")] == [kept] * 3


@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_fewer_real_images_than_tiles(tmp_path: Path, count: int) -> None:
    """The first validation must not be the end of a run on little data."""
    images = Images().images("train")
    data = Images(splits={"train": images, "val": images[:count], "test": images})
    trainer(tmp_path, [SampleGrid(3)]).fit(image_model(), datamodule=data)
    real, _, means = panels(read(tmp_path / "samples" / "step_000004.png"), 32, 3)
    for index in range(count):
        assert torch.equal(tile(real, index, 32, 3), enlarged(shown_of(data, "val", 9)[index], 4))
    for index in range(count, 9):
        assert len(tile(real, index, 32, 3).unique()) == 1  # nothing there
        assert len(tile(means, index, 32, 3).unique()) > 1


def test_no_randomness_is_used_up(tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [SampleGrid(ROWS)]):
        torch.manual_seed(3)
        trainer(tmp_path, callbacks).fit(image_model(), datamodule=Images())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("case", ["fast_dev_run", "sanity check", "validate", "no images"])
def test_draws_nothing(tmp_path: Path, case: str) -> None:
    changes: dict[str, Any] = {}
    if case == "fast_dev_run":
        changes["fast_dev_run"] = True
    if case == "sanity check":
        changes |= {"num_sanity_val_steps": 1, "max_steps": 1, "val_check_interval": 2}
    data = Numbers() if case == "no images" else Images()
    run = trainer(tmp_path, [SampleGrid(ROWS)], **changes)
    if case == "validate":
        run.validate(image_model(), datamodule=data, verbose=False)
    else:
        run.fit(image_model(), datamodule=data)
    assert not (tmp_path / "samples").exists()


def test_goes_to_tensorboard_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version="tensorboard", default_hp_metric=False)
    seen: list[tuple[str, Tensor, int]] = []
    flushed: list[int] = []
    monkeypatch.setattr(logger.experiment, "add_image", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(logger.experiment, "flush", lambda: flushed.append(len(seen)))
    trainer(tmp_path, [SampleGrid(ROWS)], logger=logger).fit(image_model(), datamodule=Images())
    ((tag, image, step),) = seen
    assert (tag, step) == ("samples/val", 4)
    assert torch.equal((image * 255).round().int(), read(tmp_path / "samples" / "step_000004.png"))
    assert 1 in flushed


@pytest.mark.parametrize("rows", [0, -1])
def test_senseless_numbers_are_refused(rows: int) -> None:
    with pytest.raises(UserError, match=f"sample_grid.rows is {rows}"):
        SampleGrid(rows)


def test_grey_values() -> None:
    images = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    assert to_unit(images, "gaussian").tolist() == [0, 0, 0.5, 0.75, 1, 1]
    assert to_unit(torch.tensor([-9.0, -3.0, 0.0, 1.5, 3.0]), "gaussian_unbounded").tolist() == [0, 0, 0.5, 0.75, 1]
    assert to_unit(images, "bernoulli").tolist() == [0, 0, 0, 0.5, 1, 1]


def test_picture_of_one_image_has_no_frame(tmp_path: Path) -> None:
    panel = torch.rand(1, 3, 8, 8)
    save_png(picture([panel], columns=8), tmp_path / "a.png")
    assert torch.equal(read(tmp_path / "a.png"), enlarged(panel[0], 4))
