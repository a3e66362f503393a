"""SVHN: tiny MATLAB files in the published format, and broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from datamodules import SVHN
from lightning_alws.errors import UserError

COUNTS = {"train": 20, "test": 6, "extra": 9}


def arrays(part: str) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(COUNTS[part])
    pixels = random.integers(0, 256, (32, 32, 3, COUNTS[part]), dtype=np.uint8)
    return pixels, 1 + np.arange(COUNTS[part], dtype=np.uint8)[:, None] % 10


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for part in COUNTS:
        pixels, digits = arrays(part)
        savemat(folder / f"{part}_32x32.mat", {"X": pixels, "y": digits}, do_compression=True)
    return folder


def ready(root: Path, **settings: object) -> SVHN:
    settings = {"validation_size": 4, "verify_checksum": False, "download": False, **settings}
    data = SVHN(root=str(root), **settings)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("below", ["", "SVHN"])
def test_images_and_digits_are_those_of_the_files(tmp_path: Path, below: str) -> None:
    write(tmp_path / "root" / below)
    data = ready(tmp_path / "root")
    assert data.sizes == {"train": 16, "val": 4, "test": 6}
    assert data.image_shape == (3, 32, 32)
    pixels, _ = arrays("test")
    for number in range(6):
        expected = torch.from_numpy(pixels[..., number]).permute(2, 0, 1)
        assert torch.equal(data.rows("test")[:][number], expected)
    assert data.labels("test").tolist() == [1, 2, 3, 4, 5, 6]
    assert sorted(data.labels("train").tolist() + data.labels("val").tolist()) == sorted(list(range(10)) * 2)
    assert data.images("test").min() >= -1
    assert ready(tmp_path / "root", extra=True).sizes == {"train": 25, "val": 4, "test": 6}


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "SVHN") / "train_32x32.mat"
    whole, (pixels, digits) = path.read_bytes(), arrays("train")

    def message(**settings: object) -> str:
        with pytest.raises(UserError) as error:
            ready(tmp_path, **settings)
        assert "train_32x32.mat" in str(error.value)
        return str(error.value)

    assert "its MD5 is" in message(verify_checksum=True)
    path.write_bytes(whole[: len(whole) // 2])
    assert "what is none" in message()
    path.write_bytes(b"no MATLAB file" * 50)
    assert "what is none" in message()
    path.write_bytes(whole[:300] + bytes(100) + whole[400:])
    assert "what is none" in message()
    savemat(path, {"X": pixels})
    assert "what is none ('y')" in message()
    savemat(path, {"X": pixels[..., 0], "y": digits})
    assert "found uint8 of 32 x 32 x 3;" in message()
    savemat(path, {"X": pixels.astype(float), "y": digits})
    assert "found float64 of 32 x 32 x 3 x 20;" in message()
    savemat(path, {"X": pixels, "y": digits[1:]})
    assert "20 labels, one for each image, found 19" in message()
    savemat(path, {"X": pixels, "y": digits - 1})
    assert "labels from 1 to 10, found 0 to 9" in message()


def test_missing_files_and_a_failed_download_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write(tmp_path / "SVHN") / "test_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"there is no test_32x32.mat, nor .* ALWS_DATA"):
        ready(tmp_path)
    import torchvision

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", fail)
    with pytest.raises(UserError, match=r"the download failed \(no network\)"):
        ready(tmp_path, download=True)
