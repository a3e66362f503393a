"""CelebA: a tiny set in the published layout, and what is wrong with sets at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encoded, write_files
from PIL import Image

from datamodules import CelebA
from datamodules.streaming import StreamedRows
from lightning_alws.errors import UserError

COUNT = 12
PARTS = [0] * 7 + [1] * 2 + [2] * 3


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALWS_CACHE", str(tmp_path / "cache"))


def face(number: int) -> np.ndarray:
    """218 high and 178 wide; what lies outside the crop is white."""
    image = np.full((218, 178, 3), 255, dtype=np.uint8)
    inside = np.linspace(0, 150, 148)[:, None, None] * np.ones((148, 148, 3)) / 2
    image[35:183, 15:163] = inside + 5 * number
    return image


def write(root: Path, images: str = "img_align_celeba", partition: str = "list_eval_partition.txt") -> Path:
    names = [f"{number + 1:06}.jpg" for number in range(COUNT)]
    files = {name: encoded(face(number), "JPEG", quality=95) for number, name in enumerate(names)}
    root.mkdir(parents=True)
    if images.endswith(".zip"):
        write_files(root / images, {f"img_align_celeba/{name}": content for name, content in files.items()})
    else:
        write_files(root / images, files)
    between = "," if partition.endswith(".csv") else " "
    lines = [f"{name}{between}{part}" for name, part in zip(names, PARTS, strict=True)]
    (root / partition).write_text("\n".join(["image_id,partition"] * (between == ",") + lines) + "\n")
    return root


def ready(root: Path, **settings: object) -> CelebA:
    data = CelebA(root=str(root), **settings)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("images", ["img_align_celeba", "img_align_celeba.zip"])
@pytest.mark.parametrize("partition", ["list_eval_partition.txt", "list_eval_partition.csv"])
def test_the_official_split_of_the_centres(tmp_path: Path, images: str, partition: str) -> None:
    write(tmp_path / "root" / "celeba", images, partition)
    data = ready(tmp_path / "root")
    assert data.sizes == {"train": 7, "val": 2, "test": 3}
    assert (data.image_shape, data.name, data.num_classes) == ((3, 64, 64), "CelebA-64", 0)
    for split, first in (("train", 0), ("val", 7), ("test", 9)):
        for index, pixels in enumerate(data.rows(split)[:]):
            inside = Image.fromarray(face(first + index)[35:183, 15:163])
            expected = np.asarray(inside.resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
            np.testing.assert_allclose(pixels.float(), expected, atol=6)  # what JPEG costs beside the white
    assert data.skipped_files == []
    small = ready(tmp_path / "root", size=32)
    assert (small.image_shape, small.name) == ((3, 32, 32), "CelebA-32")


def test_a_set_larger_than_the_device_is_streamed(tmp_path: Path) -> None:
    root = write(tmp_path / "root")
    whole, streamed = ready(root), ready(root, device_megabytes=0)
    assert isinstance(streamed.rows("train"), StreamedRows)
    assert streamed.sizes == whole.sizes
    for batches in zip(whole.train_dataloader(), streamed.train_dataloader(), strict=True):
        assert torch.equal(*batches)
    assert torch.equal(whole.images("test"), streamed.images("test"))


def test_a_folder_without_its_partition_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "root")
    (root / "list_eval_partition.txt").unlink()
    with pytest.raises(UserError, match=r"there is no list_eval_partition.txt, .*read by ImageFolder\.$"):
        ready(root)
    with pytest.raises(UserError, match=r"there is no img_align_celeba and list_eval_partition.txt, "):
        ready(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("000001.jpg 0\n000002.jpg 3\n", "line 2 of .* is '000002.jpg 3', not a file's name and 0, 1 or 2"),
        ("000001.jpg\n", "line 1 of .* is '000001.jpg'"),
        ("\n", "list_eval_partition.txt is empty"),
        ("000001.jpg 1\n", "has no training image"),
    ],
)
@pytest.mark.filterwarnings("ignore:left out")
def test_a_broken_partition_is_named(tmp_path: Path, content: str, said: str) -> None:
    root = write(tmp_path / "root")
    (root / "list_eval_partition.txt").write_text(content)
    with pytest.raises(UserError, match=said):
        ready(root)


@pytest.mark.filterwarnings("ignore:left out")
@pytest.mark.filterwarnings("ignore:1 of the 12 images in")
def test_images_that_are_broken_small_missing_or_in_no_partition_are_left_out(tmp_path: Path) -> None:
    root = write(tmp_path / "root")
    folder = root / "img_align_celeba"
    noise = np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)
    (folder / "000002.jpg").write_bytes(encoded(noise, "JPEG")[:3000])
    (folder / "000003.jpg").write_bytes(encoded(face(3)[:100], "JPEG"))
    (folder / "000004.jpg").unlink()
    (folder / "000004.gif").write_bytes(b"")
    (folder / "new\x1b[31m\nline.jpg").write_bytes(encoded(face(5), "JPEG"))
    (folder / "000099.jpg").write_bytes(encoded(face(5), "JPEG"))
    with pytest.warns(UserWarning, match="skipped 2 of the 13 images") as warnings:
        data = ready(root)
    assert data.sizes == {"train": 4, "val": 2, "test": 3}
    assert data.skipped_formats == {".gif": 1}
    assert [name[:10] for name in data.skipped_files] == ["000002.jpg", "000003.jpg", "000099.jpg", r"new\x1b[31"]
    assert "178 x 100 pixels, less than the crop of 148" in data.skipped_files[1]
    said = " ".join(str(warning.message) for warning in warnings)
    assert "1 of the 12 images in" in said
    assert "left out 2 images of CelebA-64 that are not in list_eval_partition.txt: 000099.jpg" in said
    assert all(str(warning.message).isprintable() for warning in warnings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 2}, "data.size is 2; give at least 4"),
        ({"size": 160}, "data.size is 160, more than data.crop, 148"),
        ({"crop": 200}, "data.crop is 200, but CelebA's images are 178 pixels wide"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CelebA(**settings)
