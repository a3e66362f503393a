"""NaturalPatches: patches of the right photographs, standardised by the training patches alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encoded, write_files

from datamodules import NaturalPatches, natural_patches
from datamodules.patches import intensities
from lightning_alws.errors import UserError

SMALL = {"size": 8, "train_size": 300, "validation_size": 60, "test_size": 80, "batch_size": 50}


def ready(source: Path | None = None, **settings: object) -> NaturalPatches:
    data = NaturalPatches(None if source is None else str(source), **{**SMALL, **settings})  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def photographs(count: int) -> dict[str, bytes]:
    """Photograph k has grey values from 10 k on, different at every place of a patch."""
    random = np.random.default_rng(0)
    return {f"{k:02}.png": encoded(10 * k + random.integers(0, 9, (40, 30)).astype(np.uint8)) for k in range(count)}


def test_scikit_learns_photographs_are_the_default() -> None:
    data = ready()
    assert data.sizes == {"train": 300, "val": 60, "test": 80}
    assert (data.image_shape, data.likelihood, data.pixel_range, data.num_classes) == (
        (1, 8, 8),
        "gaussian_unbounded",
        None,
        0,
    )
    assert data.photographs["train"] == data.photographs["val"] != data.photographs["test"]
    train = data.images("train")
    assert train.dtype == torch.float32
    torch.testing.assert_close(train.mean(0), torch.zeros(1, 8, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(1, 8, 8))
    assert data.images("test").std() == pytest.approx(1, rel=0.3)
    assert torch.equal(torch.cat(list(data.test_dataloader())), data.images("test"))
    with pytest.raises(UserError, match="have no labels"):
        data.labels("val")


def test_no_patch_of_a_test_photograph_is_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_files(tmp_path / "photographs.tar", photographs(20))
    monkeypatch.setattr(natural_patches, "without_mean", lambda patches: patches)
    monkeypatch.setattr(natural_patches, "pixel_statistics", lambda patches: (torch.zeros(8, 8), torch.ones(8, 8)))
    seen = {}
    for seed in range(3):
        data = ready(source, seed=seed)
        of = {split: ((data.images(split) * 255).round() // 10).long() for split in ("train", "val", "test")}
        for split, numbers in of.items():
            assert (numbers == numbers[:, :, :1, :1]).all()  # a patch is of one photograph
            assert {f"{number:02}.png" for number in numbers.unique().tolist()} == set(data.photographs[split])
        parts = [set(numbers.unique().tolist()) for numbers in of.values()]
        assert [len(part) for part in parts] == [16, 2, 2]
        assert len(set.union(*parts)) == 20
        seen[seed] = parts[2]
        # Of 16 photographs, 300 patches: 18 or 19 of each.
        assert set(of["train"][:, 0, 0, 0].bincount().tolist()) <= {0, 18, 19}
    assert seen[0] != seen[1] or seen[1] != seen[2]


def test_the_seed_decides_and_training_patches_alone_standardise(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photographs", photographs(6))
    first, again, other = ready(source), ready(source), ready(source, seed=1)
    for split in ("train", "val", "test"):
        assert torch.equal(first.images(split), again.images(split))
    assert not torch.equal(first.images("train"), other.images("train"))
    fewer = ready(source, test_size=10)
    assert torch.equal(fewer.images("train"), first.images("train"))


def test_van_haterens_files_are_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    files = {f"imk{k:05}.iml": random.integers(0, 6000, (1024, 1536)).astype(">u2").tobytes() for k in range(3)}
    files["imk00009.iml"] = files["imk00001.iml"][:-2]
    with pytest.warns(UserWarning, match="left out 1 photographs, which cannot be used: imk00009.iml"):
        data = ready(write_files(tmp_path / "iml", files), size=32)
    assert data.images("train").shape == (300, 1, 32, 32)
    assert data.skipped_files == ["imk00009.iml (3145726 bytes, not 3145728: 1024 x 1536 of two bytes)"]


def test_small_and_broken_photographs_are_left_out(tmp_path: Path) -> None:
    files = {**photographs(4), "small.png": encoded(np.zeros((7, 50), np.uint8)), "zero.jpg": b""}
    with pytest.warns(UserWarning, match="left out 2 photographs"):
        data = ready(write_files(tmp_path / "photographs", files))
    assert data.skipped_files == ["small.png (7 x 50 pixels, less than a patch of 8 x 8)", "zero.jpg (no image)"]
    assert sum(len(names) for names in data.photographs.values()) == 4


def test_photographs_of_formats_that_are_not_read_are_counted(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="left out 2 pictures in .*: 2 .dng"):
        data = ready(write_files(tmp_path / "photographs", {**photographs(4), "a.dng": b"", "b.dng": b""}))
    assert (data.skipped_files, data.skipped_formats) == ([], {".dng": 2})


@pytest.mark.filterwarnings("ignore:left out")
def test_too_few_photographs_are_refused(tmp_path: Path) -> None:
    one = write_files(tmp_path / "one", {**photographs(1), "zero.jpg": b""})
    with pytest.raises(UserError, match=r"1 photographs can be used \(1 cannot, first .*\); give two or more"):
        ready(one)
    with pytest.raises(UserError, match=r"where 0 photographs can be used \(2 cannot, first "):
        ready(write_files(tmp_path / "two", photographs(2)), size=31)
    with pytest.raises(UserError, match="no such file or folder"):
        ready(tmp_path / "nowhere")


def test_a_source_that_names_nothing_or_is_blank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.source is '', which names nothing; give a folder"):
        NaturalPatches(source="", **SMALL).setup()  # not the current folder
    blank = {f"{k}.png": encoded(np.full((20, 20), 90, dtype=np.uint8)) for k in range(4)}
    with pytest.raises(UserError, match="every training patch has the same number at some pixel, as blank photographs"):
        ready(write_files(tmp_path / "blank", blank))


def test_what_is_no_number_is_left_out_and_what_is_not_seen_is_black(tmp_path: Path) -> None:
    bad = np.ones((20, 20), dtype=np.float32)
    bad[3, 4] = np.nan
    files = {**photographs(4), "nan.tif": encoded(bad, "TIFF")}
    with pytest.warns(UserWarning, match="left out 1 photographs"):
        data = ready(write_files(tmp_path / "nan", files))
    assert data.skipped_files == ["nan.tif (pixels that are not finite numbers)"]
    clear = np.full((20, 20, 4), 200, dtype=np.uint8)
    clear[..., 3] = 0
    assert intensities("clear.png", encoded(clear)).max() == 0


def test_a_relative_source_is_looked_for_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "mine", photographs(4))
    monkeypatch.setenv("ALWS_DATA", str(tmp_path))
    assert sum(len(names) for names in ready(Path("mine")).photographs.values()) == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 1}, "data.size is 1; give at least 2"),
        ({"train_size": 1}, "data.train_size is 1; give at least 2"),
        ({"test_size": -1}, "data.test_size is -1"),
        ({"validation_size": -1}, "validation_size=-1 is negative"),
        (
            {"size": 428},
            "data.size is 428, but the photographs that come with scikit-learn have 427 x 640 pixels; give at",
        ),
        (
            {"size": 400, "train_size": 10**9},
            "data.train_size is 1000000000, .* takes 1.19e[+]06 GiB of memory, more than",
        ),
        ({"test_fraction": 0.5}, "data.test_fraction is 0.5; give more than 0 and less than 0.5"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        NaturalPatches(**settings)  # type: ignore[arg-type]


def test_as_much_as_fits_is_taken_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is read: 440 patches of 64 pixels, four bytes each, twice."""
    monkeypatch.setattr(natural_patches, "installed", lambda device: 440 * 64 * 8)
    NaturalPatches(**SMALL)
    with pytest.raises(UserError, match="data.train_size is 301, which with patches of 8 x 8 takes"):
        NaturalPatches(**{**SMALL, "train_size": 301})


def test_the_photographs_at_hand(real_root: Path) -> None:
    if not (real_root / "bsds500-train.tar").exists():
        pytest.skip("no photographs")
    data = ready(real_root / "bsds500-train.tar", size=16, train_size=2000)
    assert {split: len(names) for split, names in data.photographs.items()} == {"train": 109, "val": 14, "test": 14}
    assert data.skipped_files == []
    assert float(data.images("test").flatten(1).norm(dim=1).mean()) == pytest.approx(16, rel=0.1)
