"""Patches of photographs: what is read is what was written, and broken files are named."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.patches import SAMPLE_SHAPE, PatchSource, _Photographs, draw_patches, standardise
from lightning_alws.errors import UserError


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def places(height: int, width: int) -> np.ndarray:
    """An image whose every pixel says where it is."""
    return np.arange(height * width, dtype=np.uint16).reshape(height, width)


def photographs(source: str | None) -> list[tuple[str, np.ndarray]]:
    found = _Photographs(source)
    return [(name, found.read(number)) for number, name in enumerate(found.names)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_scikit_learns_two_photographs_are_the_default() -> None:
    assert all(pixels.shape == SAMPLE_SHAPE for _, pixels in photographs(None))
    images = dict(photographs(None))
    assert list(images) == ["china.jpg", "flower.jpg"]
    for pixels in images.values():
        assert pixels.shape == (427, 640)
        assert pixels.dtype == np.float32
        assert 0 <= pixels.min() < 0.1
        assert 0.8 < pixels.max() <= 1


def test_grey_is_the_luminance_and_folders_are_searched_throughout(tmp_path: Path) -> None:
    colour = np.zeros((4, 5, 3), dtype=np.uint8)
    colour[..., 0], colour[..., 1], colour[..., 2] = 255, 51, 102
    write(tmp_path / "a" / "colour.png", colour)
    write(tmp_path / "b.PNG", np.full((4, 5), 51, dtype=np.uint8))
    write(tmp_path / "c.png", places(4, 5))
    (tmp_path / "notes.txt").write_text("no image")
    names, images = zip(*photographs(str(tmp_path)), strict=True)
    assert [Path(name).name for name in names] == ["colour.png", "b.PNG", "c.png"]
    np.testing.assert_allclose(images[0], 0.299 + 0.587 * 0.2 + 0.114 * 0.4, rtol=1e-6)
    np.testing.assert_allclose(images[1], 0.2, rtol=1e-6)
    np.testing.assert_allclose(images[2], places(4, 5) / 19, rtol=1e-6)  # 16 bits: over the largest
    assert len([*photographs(str(tmp_path / "b.PNG"))]) == 1


@pytest.mark.parametrize("compression", ["", "gz"])
def test_a_tar_is_as_good_as_a_folder(tmp_path: Path, compression: str) -> None:
    for index in range(3):
        write(tmp_path / "folder" / f"{index}.png", places(20 + index, 30))
    archive = tmp_path / "images.tar"
    with tarfile.open(archive, f"w:{compression}") as tar:  # type: ignore[call-overload]
        tar.add(tmp_path / "folder", "photographs")
    patches = [draw_patches(str(source), 8, 50, generator()) for source in (archive, tmp_path / "folder")]
    torch.testing.assert_close(*patches)


def test_patches_are_squares_from_anywhere_equally_many_from_each_image(tmp_path: Path) -> None:
    shapes = [(9, 30), (20, 8), (12, 12)]
    for index, shape in enumerate(shapes):
        write(tmp_path / f"{index}.png", places(*shape))
    patches = draw_patches(str(tmp_path), 8, 3 * 200, generator())
    assert patches.shape == (600, 8, 8)
    seen: list[set[int]] = [set() for _ in shapes]
    counts = [0] * len(shapes)
    for patch in patches:
        step = patch[0, 1] - patch[0, 0]
        index = next(i for i, (h, w) in enumerate(shapes) if abs(1 / (h * w - 1) - float(step)) < 1e-6)
        height, width = shapes[index]
        values = (patch * (height * width - 1)).round().long()
        corner = int(values[0, 0])
        assert torch.equal(values, corner + torch.arange(8)[:, None] * width + torch.arange(8))
        seen[index].add(corner)
        counts[index] += 1
    assert counts == [200] * 3
    assert [len(corners) for corners in seen] == [(h - 7) * (w - 7) for h, w in shapes]
    assert len(draw_patches(str(tmp_path), 8, 7, generator())) == 7
    torch.testing.assert_close(draw_patches(str(tmp_path), 8, 600, generator()), patches)


def test_van_hateren_images_are_big_endian(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 6000, (1024, 1536)).astype(">u2")
    (tmp_path / "imk00001.iml").write_bytes(pixels.tobytes())
    ((_, image),) = photographs(str(tmp_path))
    np.testing.assert_allclose(image, pixels.astype(float) / pixels.max(), rtol=1e-6)
    assert draw_patches(str(tmp_path), 16, 10, generator()).shape == (10, 16, 16)


def test_standardised_patches_have_no_mean_and_pixels_of_unit_variance() -> None:
    patches = standardise(draw_patches(None, 8, 1000, generator()))
    torch.testing.assert_close(patches.mean(0), torch.zeros(8, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.std(0, correction=0), torch.ones(8, 8))
    assert float(patches.flatten(1).norm(dim=1).mean()) == pytest.approx(8, rel=0.1)


def test_contrast_of_flat_patches_is_not_blown_up() -> None:
    patches = torch.rand(50, 8, 8)
    flat = 0.5 + 1e-4 * torch.randn(50, 8, 8)
    standardised = standardise(torch.cat([patches, flat]))[50:]
    assert float((standardised - standardised.mean(0)).std()) < 0.05
    assert standardise(torch.zeros(5, 8, 8)).isfinite().all()


def test_broken_sources_are_named_in_a_sentence(tmp_path: Path) -> None:
    def message(source: Path, size: int = 16) -> str:
        with pytest.raises(UserError) as error:
            draw_patches(str(source), size, 10, generator())
        assert str(error.value).endswith(".")
        return str(error.value)

    assert "there is no such file or folder" in message(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("none here")
    assert "holds no images" in message(tmp_path / "empty")
    with tarfile.open(tmp_path / "empty.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO())
    assert "holds no images" in message(tmp_path / "empty.tar")
    (tmp_path / "no.tar").write_bytes(b"not an archive" * 100)
    assert "no readable tar" in message(tmp_path / "no.tar")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "photo.jpg").write_bytes(b"\xff\xd8 not a picture")
    assert "1 images cannot be used, first photo.jpg (" in message(tmp_path / "broken")
    whole = write(tmp_path / "whole.png", places(40, 40)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    assert "first half.png (image file is truncated" in message(tmp_path / "half.png")
    write(tmp_path / "small" / "stamp.png", places(15, 40))
    assert "stamp.png (15 x 40 pixels, less than a patch of 16 x 16)" in message(tmp_path / "small")
    (tmp_path / "short.iml").write_bytes(bytes(1024 * 1536 * 2 - 1))
    assert "short.iml (3145727 bytes, not 3145728" in message(tmp_path / "short.iml")


def test_what_cannot_be_used_is_left_out_by_name(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / f"{index}.png", places(20, 20))
    write(tmp_path / "small.png", places(7, 40))
    (tmp_path / "broken\x1b.jpg").write_bytes(b"")
    source = PatchSource(str(tmp_path), 8)
    assert source.names == ["0.png", "1.png", "2.png"]
    assert source.skipped == [r"broken\x1b.jpg (no image)", "small.png (7 x 40 pixels, less than a patch of 8 x 8)"]
    drawn = source.draw({"a": ([0, 2], 9, generator()), "b": ([1], 5, generator()), "none": ([1], 0, generator())})
    assert {name: tuple(rows.shape) for name, rows in drawn.items()} == {
        "a": (9, 8, 8),
        "b": (5, 8, 8),
        "none": (0, 8, 8),
    }


def test_a_cut_tar_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (100, 100), dtype=np.uint8))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[:3000])
    with pytest.raises(UserError, match="cut.tar"):
        draw_patches(str(tmp_path / "cut.tar"), 8, 10, generator())
