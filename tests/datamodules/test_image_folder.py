"""ImageFolder: folders and archives, classes and splits, and every kind of file that is not what it should be."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encoded, pixels, write_files
from PIL import Image
from runs import image_model, trainer

from callbacks import ResultsFile
from datamodules import ImageFolder
from datamodules.image_files import Unreadable, decode, open_images
from lightning_alws.errors import UserError


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALWS_CACHE", str(tmp_path / "cache"))


def ready(path: Path | str | None, **settings: object) -> ImageFolder:
    data = ImageFolder(None if path is None else str(path), **{"size": 8, "batch_size": 4, **settings})  # type: ignore[arg-type]
    data.prepare_data()
    data.setup()
    return data


def message(path: Path | str | None, **settings: object) -> str:
    with pytest.raises(UserError) as error:
        ready(path, **settings)
    assert str(error.value).endswith(".")
    return str(error.value)


def images(count: int, prefix: str = "", first: int = 0) -> dict[str, bytes]:
    return {f"{prefix}{number:04}.png": encoded(pixels(number)) for number in range(first, first + count)}


def rows(data: ImageFolder, split: str) -> list[list[int]]:
    return data.rows(split)[:].flatten(1).tolist()


@pytest.mark.parametrize("name", ["folder", "archive.tar", "archive.tar.gz", "archive.zip"])
def test_folders_and_archives_give_the_pixels_of_their_files(tmp_path: Path, name: str) -> None:
    data = ready(write_files(tmp_path / name, {**images(40), "notes.txt": b"none"}))
    assert data.sizes == {"train": 32, "val": 4, "test": 4}
    assert (data.image_shape, data.num_classes, data.likelihood, data.skipped_files) == ((3, 8, 8), 0, "gaussian", [])
    written = sorted(pixels(number).transpose(2, 0, 1).flatten().tolist() for number in range(40))
    assert sorted(rows(data, "train") + rows(data, "val") + rows(data, "test")) == written
    x = data.images("train")
    torch.testing.assert_close(x, data.rows("train")[:].float() / 127.5 - 1)
    assert torch.equal(data.images("train", torch.tensor([3, 1])), x[[3, 1]])
    assert torch.equal(data.images("train", slice(2)), x[:2])
    with pytest.raises(UserError, match="have no labels"):
        data.labels("train")


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    files = {**images(12, "pets/cat/"), **images(20, "pets/ant/more/", 12)}
    data = ready(write_files(tmp_path / "pets.tar", files), test_size=6, validation_size=5)
    assert (data.classes, data.num_classes) == (["ant", "cat"], 2)
    assert data.sizes == {"train": 21, "val": 5, "test": 6}
    cats = {tuple(pixels(number).transpose(2, 0, 1).flatten().tolist()) for number in range(12)}
    for split in ("train", "val", "test"):
        expected = [int(tuple(row) in cats) for row in rows(data, split)]
        assert data.labels(split).tolist() == expected
    with pytest.warns(UserWarning, match=r"no sub-folder of a class \(1 in train\)"):
        assert ready(write_files(tmp_path / "mixed", {**files, **images(1, "pets/", 50)})).num_classes == 0


def test_sub_folders_are_splits(tmp_path: Path) -> None:
    files = {**images(20, "all/train/a/"), **images(10, "all/train/b/", 20), **images(5, "all/Test/a/", 30)}
    files |= images(7, "all/Test/b/", 35)
    source = write_files(tmp_path / "parts", files)
    data = ready(source, validation_size=4)
    assert data.sizes == {"train": 26, "val": 4, "test": 12}
    assert data.classes == ["a", "b"]
    assert data.labels("test").tolist() == [0] * 5 + [1] * 7
    test = {tuple(pixels(number).transpose(2, 0, 1).flatten().tolist()) for number in range(30, 42)}
    assert {tuple(row) for row in rows(data, "test")} == test
    assert data.in_file_order == {"train", "test"}
    seeded = ready(source, split="seed", test_size=3)  # then the folders are classes
    assert (seeded.sizes["test"], seeded.classes) == (3, ["Test", "train"])
    assert seeded.in_file_order == {"train"}
    whole = ready(write_files(tmp_path / "three", {**files, **images(6, "all/valid/a/", 50)}), split="folders")
    assert whole.sizes == {"train": 30, "val": 6, "test": 12}
    assert "do not all lie in sub-folders" in message(write_files(tmp_path / "flat", images(9)), split="folders")


def test_an_image_beside_the_splits_does_not_move_the_test_into_training(tmp_path: Path) -> None:
    files = {**images(20, "train/"), **images(5, "test/", 20), "docs/logo.png": encoded(pixels(50))}
    source = write_files(tmp_path / "folder", files)
    assert "1 images lie beside the sub-folders of train and test or val: docs/logo.png; move" in message(source)
    assert sum(ready(source, split="seed").sizes.values()) == 26  # as asked for
    vehicles = {**images(10, "train/"), **images(10, "ship/", 10)}  # a class may be called so
    assert ready(write_files(tmp_path / "vehicles", vehicles)).classes == ["ship", "train"]


def test_a_class_that_training_lacks_is_refused_by_name(tmp_path: Path) -> None:
    files = {**images(6, "train/ant/"), **images(6, "train/cat/", 6), **images(4, "test/cat/", 12)}
    files |= images(4, "test/cow/", 16)
    said = message(write_files(tmp_path / "test", files))
    assert "where test has the classes cow, of which train has no image; name the sub-folders" in said
    assert "where val has the classes Cat, of" in message(
        write_files(
            tmp_path / "val.zip", {**images(6, "train/ant/"), **images(6, "train/cat/", 6), **images(2, "val/Cat/")}
        )
    )
    # One folder in each split is no class, but one of another name may be.
    assert ready(write_files(tmp_path / "one", {**images(9, "train/all/"), **images(3, "test/all/", 9)})).classes == []
    assert "the classes dog" in message(
        write_files(tmp_path / "other", {**images(9, "train/cat/"), **images(3, "test/dog/", 9)})
    )


@pytest.mark.filterwarnings("ignore:skipped 2 of the")
def test_a_class_whose_training_images_are_all_broken_is_one_that_training_lacks(tmp_path: Path) -> None:
    files = {**images(9, "train/ant/"), **images(9, "train/bee/", 9), **images(3, "test/ant/", 20)}
    files |= {"train/cat/0.png": b"", "train/cat/1.png": b""}
    assert ready(write_files(tmp_path / "whole", files)).classes == ["ant", "bee"]
    files |= images(3, "test/cat/", 30)
    assert "test has the classes cat, of which train has no image" in message(write_files(tmp_path / "broken", files))


def test_a_class_that_a_held_out_split_lacks_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {
        **images(6, "train/a/"),
        **images(6, "train/b/", 6),
        **images(6, "train/c/", 12),
        **images(5, "test/b/", 18),
    }
    with caplog.at_level("INFO", "pytorch_lightning.utilities.rank_zero"):
        data = ready(write_files(tmp_path / "folder", files), validation_size=2)
    assert data.classes == ["a", "b", "c"]
    assert data.labels("test").tolist() == [1] * 5
    (said,) = [record.message for record in caplog.records if "classes" in record.message]
    assert said.startswith("test has images of 1 of the 3 classes in ")
    assert said.endswith("none of a, c")


def test_images_beside_the_folders_of_classes_leave_none_a_label_and_that_is_said(tmp_path: Path) -> None:
    files = {**images(6, "train/a/"), **images(6, "train/b/", 6), **images(4, "test/", 12)}
    with pytest.warns(UserWarning, match=r"have no labels, since some lie in no sub-folder of a class \(4 in test\)"):
        assert ready(write_files(tmp_path / "folder", files)).num_classes == 0


def test_splits_follow_the_seed(tmp_path: Path) -> None:
    source = write_files(tmp_path / "folder", images(40))
    first, again, other = (ready(source, seed=seed) for seed in (0, 0, 1))
    for split in ("train", "val", "test"):
        assert rows(first, split) == rows(again, split)
    assert rows(first, "test") != rows(other, "test")
    assert rows(ready(source, validation_size=9), "test") == rows(first, "test")


def test_a_relative_path_is_looked_for_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "archive.tar", images(10))
    monkeypatch.setenv("ALWS_DATA", str(tmp_path))
    assert ready("archive.tar").sizes["train"] == 8


def test_all_sizes_and_modes_become_one(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
    clear = np.zeros((8, 8, 4), dtype=np.uint8)
    clear[..., :3] = 200  # a colour that is not to be seen
    files = {
        "a-wide.png": encoded(pixels(0, 16, 40)),
        "b-high.jpg": encoded(pixels(1, 33, 17), "JPEG"),
        "c-grey.png": encoded(grey),
        "d-16.png": encoded(grey.astype(np.uint16) * 16),
        "e-clear.png": encoded(clear),
        "f-palette.png": encoded(pixels(2), mode="P"),
        "g-cmyk.jpg": encoded(pixels(3), "JPEG", mode="CMYK"),
        "h-bits.png": encoded(pixels(4), mode="1"),
        "i-float.tif": encoded((grey / 50).astype(np.float32), "TIFF"),
        "j-alpha.png": encoded(pixels(5), mode="LA"),
        "k.webp": encoded(pixels(6), "WEBP"),
        "l.BMP": encoded(pixels(7), "BMP"),
    }
    source = write_files(tmp_path / "mixed", files)
    data = ready(source, test_size=0, validation_size=0)
    assert data.skipped_files == []
    stored = data.rows("train")[:]
    assert stored.shape == (12, 3, 8, 8)
    for index, expected in ((2, grey), (3, grey), (8, grey)):  # more than 8 bits: over the largest
        np.testing.assert_allclose(stored[index], np.broadcast_to(expected, (3, 8, 8)), atol=1)
    assert stored[4].max() == 0
    assert stored[0].float().std() > 10
    assert ready(source, channels=1, test_size=0, validation_size=0).rows("train").shape == (12, 1, 8, 8)


def test_the_centre_is_cut_and_resized() -> None:
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    image[6:14, 16:24] = pixels(0)
    cut = decode(encoded(image), 3, 8, crop=8)
    np.testing.assert_array_equal(cut, pixels(0).transpose(2, 0, 1))
    steps = np.repeat(np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8), 4, 0), 4, 1)
    wide = np.concatenate([np.full((32, 9), 255, np.uint8), steps, np.full((32, 9), 255, np.uint8)], 1)
    np.testing.assert_allclose(decode(encoded(wide), 1, 8)[0, :, 1:-1], steps[::4, ::4][:, 1:-1], atol=2)
    with pytest.raises(Unreadable, match="40 x 20 pixels, less than the crop of 30"):
        decode(encoded(image), 3, 8, crop=30)


def test_images_are_turned_upright() -> None:
    picture = np.zeros((8, 8), dtype=np.uint8)
    picture[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned = decode(encoded(picture, "JPEG", exif=exif, quality=100), 1, 8)[0]
    assert turned[:, 4:].min() > 240
    assert turned[:, :4].max() < 15


def test_unreadable_files_are_left_out_named_and_counted(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    whole = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")
    files = images(30)
    files["0007a.jpg"] = whole[: len(whole) // 2]
    files["0011a.png"] = b"no image"
    files["0013a.png"] = b""
    files["._0014.png"] = b"a copy by macOS"
    files["__MACOSX/0015.png"] = b"another"
    source = write_files(tmp_path / "archive.zip", files)
    data = ready(source, test_size=3, validation_size=2)
    assert data.sizes == {"train": 25, "val": 2, "test": 3}
    assert [name.partition(" ")[0] for name in data.skipped_files] == ["0007a.jpg", "0011a.png", "0013a.png"]
    assert "truncated" in data.skipped_files[0]
    assert data.skipped_files[1] == "0011a.png (no image)"
    warnings = [str(warning.message) for warning in recwarn if "skipped 3 of the 33 images" in str(warning.message)]
    assert len(warnings) == 1
    assert "0007a.jpg" in warnings[0]
    again = ready(source, test_size=3, validation_size=2)
    assert again.skipped_files == data.skipped_files
    assert rows(again, "train") == rows(data, "train")

    run = trainer(tmp_path, [ResultsFile()], max_steps=1)
    run.fit(image_model("gaussian", (3, 8, 8)), datamodule=data)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["skipped_files"] == {"count": 3, "first": data.skipped_files}


@pytest.mark.filterwarnings("ignore:left out 5 pictures")
@pytest.mark.parametrize("name", ["folder", "archive.tar", "archive.zip"])
def test_pictures_of_formats_that_are_not_read_are_counted_by_ending(tmp_path: Path, name: str) -> None:
    files = {**images(20), "notes.txt": b"none", ".DS_Store": b"", "Thumbs.db": b"", ".hidden.gif": b""}
    files |= {f"moving{number}.gif": encoded(pixels(number), "GIF") for number in range(3)}
    files |= {"below/phone.HEIC": b"", "raw.NEF": b"", "raw.gif.txt": b""}
    source = write_files(tmp_path / name, files)
    with pytest.warns(UserWarning, match="left out 5 pictures in .* of formats .*: 3 .gif, 1 .heic, 1 .nef; save"):
        data = ready(source)
    assert (sum(data.sizes.values()), data.skipped_files) == (20, [])
    run = trainer(tmp_path, [ResultsFile()], max_steps=1)
    run.fit(image_model("gaussian", (3, 8, 8)), datamodule=data)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["skipped_formats"] == {".gif": 3, ".heic": 1, ".nef": 1}
    assert "skipped_files" not in record


def test_a_source_of_other_formats_alone_is_refused_and_says_which(tmp_path: Path) -> None:
    files = {"a.gif": b"", "b.GIF": b"", "c.svg": b""}
    assert "it holds no images that are read (but 2 .gif, 1 .svg)" in message(write_files(tmp_path / "folder", files))
    assert "a.gif, of a format that is not read; save it as PNG or JPEG" in message(tmp_path / "folder" / "a.gif")


ODD = "line\nbreak \x1b[31mred\udcff"  # a terminal's command, and a byte that is no UTF-8
ESCAPED = r"line\nbreak \x1b[31mred\udcff"


@pytest.mark.parametrize("name", ["folder", "archive.tar"])
@pytest.mark.filterwarnings("ignore:left out 1 pictures")
@pytest.mark.filterwarnings("ignore:skipped 1 of the")
def test_odd_names_are_escaped_wherever_they_are_named(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    files = {**images(20, "train/a/"), **images(20, f"train/{ODD}/", 20), **images(3, "test/a/", 40)}
    files |= {f"train/a/{ODD}.png": b"", "train/a/moving.gif": b""}
    (tmp_path / ODD).mkdir()
    source = write_files(tmp_path / ODD / name, files)
    with (
        caplog.at_level("INFO", "pytorch_lightning.utilities.rank_zero"),
        pytest.warns(UserWarning, match="left out 1 pic") as warnings,
    ):
        data = ready(source, validation_size=2)
    assert data.skipped_files == [rf"train/a/{ESCAPED}.png (no image)"]
    assert data.classes == ["a", ODD]
    run = trainer(tmp_path, [ResultsFile()], max_steps=1)
    run.fit(image_model("gaussian", (3, 8, 8)), datamodule=data)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["skipped_files"] == {"count": 1, "first": data.skipped_files}
    files = {**images(2, "test/a/"), f"test/{ODD}!/0.png": encoded(pixels(90)), **images(5, "train/a/", 2)}
    refused = message(write_files(tmp_path / ODD / f"strange-{name}", files))
    assert f"test has the classes {ESCAPED}!, of which" in refused
    missing = message(tmp_path / ODD / "missing")
    said = [*(str(warning.message) for warning in warnings), *(record.message for record in caplog.records)]
    assert len([text for text in said if ESCAPED in text]) >= 3  # formats, unreadable files, classes
    for text in [*said, refused, missing]:
        assert text.isprintable(), text
    assert "\x1b" not in "".join(capfd.readouterr())


def test_a_name_longer_than_a_cache_may_have_is_cut(tmp_path: Path) -> None:
    for title in ("n" * 240, "😀" * 60):
        data = ready(write_files(tmp_path / title, images(8)))
        assert data.name.startswith(f"ImageFolder-{title[:50]}")
        assert len(list((tmp_path / "cache" / "images").glob(f"{data.name}-*"))) == 1


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_files(tmp_path / "holiday", images(8)))
    assert ready(".").name == "ImageFolder-holiday-8"


def test_an_archive_mostly_of_broken_files_is_refused(tmp_path: Path) -> None:
    files = {**images(3), **{f"x{number}.jpg": b"\xff\xd8" for number in range(4)}}
    for source in (tmp_path / "folder", tmp_path / "archive.tar"):
        said = message(write_files(source, files))
        assert said.startswith("4 of the 7 images in ")
        assert "x0.jpg (" in said


@pytest.mark.filterwarnings("ignore:skipped 1 of the")
def test_a_damaged_zip_member_is_left_out(tmp_path: Path) -> None:
    source = write_files(tmp_path / "archive.zip", images(10))
    content = bytearray(source.read_bytes())
    at = content.index(images(10)["0004.png"])
    content[at + 60] ^= 255
    source.write_bytes(content)
    assert "0004.png (Bad CRC-32" in ready(source).skipped_files[0]


@pytest.mark.filterwarnings("ignore:skipped 1 of the")
def test_links_in_folders_are_followed_once(tmp_path: Path) -> None:
    write_files(tmp_path / "store", images(6))
    write_files(tmp_path / "folder" / "b", images(4, first=10))
    (tmp_path / "folder" / "a").symlink_to(tmp_path / "store")
    (tmp_path / "folder" / "b" / "circle").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "b" / "nowhere.png").symlink_to(tmp_path / "missing.png")
    data = ready(tmp_path / "folder")
    assert sum(data.sizes.values()) == 10
    assert data.classes == ["a", "b"]
    assert data.skipped_files == ["b/nowhere.png (No such file or directory)"]


@pytest.mark.filterwarnings("ignore:the images in .* have no labels")
def test_names_that_lead_out_of_an_archive_write_nothing(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    files = {**images(8, "../../cat/"), **images(8, "/dog/", 8), "../outside.png": encoded(pixels(50))}
    source = write_files(tmp_path / "bad.tar", files)
    with tarfile.open(source, "a") as archive:
        link = tarfile.TarInfo("passwords.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    data = ready(source)
    assert sum(data.sizes.values()) == 17
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    assert not outside.exists()
    assert {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {
        "pixels.bin",
        "index.json",
        "lock",
    }


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    write_files(tmp_path / "whole.tar", images(12))
    content = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[:5000])
    assert "no readable tar" in message(tmp_path / "cut.tar")
    struck = bytearray(content)
    with tarfile.open(tmp_path / "whole.tar") as archive:
        offset = archive.getmembers()[6].offset
    struck[offset : offset + 8] = b"\xff" * 8  # tarfile takes it for the end
    (tmp_path / "struck.tar").write_bytes(struck)
    assert "no readable header behind 6 members" in message(tmp_path / "struck.tar")
    write_files(tmp_path / "whole.tar.gz", images(12))
    packed = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(packed[: len(packed) // 2])
    assert "no readable tar" in message(tmp_path / "cut.tar.gz")
    (tmp_path / "text.tar").write_bytes(b"not an archive" * 100)
    assert "image file (file could not be opened successfully); give" in message(tmp_path / "text.tar")
    write_files(tmp_path / "whole.zip", images(12))
    (tmp_path / "cut.zip").write_bytes((tmp_path / "whole.zip").read_bytes()[:-30])
    assert "no readable" in message(tmp_path / "cut.zip")


def test_empty_and_missing_sources_are_refused(tmp_path: Path) -> None:
    assert message(None).startswith("data.path is not given")
    assert "no such file or folder, nor in ALWS_DATA" in message(tmp_path / "missing")
    assert message("").startswith("data.path is '', which names nothing")
    assert message("/dev/null") == "data.path is /dev/null, which is neither a folder nor a file; give one of them."
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "empty" / "readme.txt").write_text("nothing here")
    assert "holds no images; give a folder" in message(tmp_path / "empty")
    write_files(tmp_path / "empty.tar", {"readme.txt": b"nothing"})
    assert "holds no images" in message(tmp_path / "empty.tar")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 3}, "data.size is 3; give at least 4"),
        ({"size": 5000}, "data.size is 5000; give at most 1024"),
        ({"channels": 2}, "data.channels is 2; give 3 for colour or 1 for grey"),
        ({"crop": 0}, "data.crop is 0; give at least 1"),
        ({"test_size": -1}, "data.test_size is -1; give at least 0"),
        ({"validation_size": -1}, "validation_size=-1 is negative"),
        ({"device_megabytes": -1}, "data.device_megabytes is -1"),
        ({"crop": 9}, "10 of the 10 images in .* cannot be used: 0000.png .8 x 8 pixels, less than the crop of 9"),
        ({"test_size": 6, "validation_size": 4}, "10 images to train on, of which validation and test take all"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    assert re.search(said, message(write_files(tmp_path / "folder", images(10)), **settings))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ALWS_CACHE", str(tmp_path / "file"))
    said = message(write_files(tmp_path / "folder", images(10)))
    assert str(tmp_path / "file") in said
    assert "set ALWS_CACHE to a folder that can be written to and has 1 MB" in said


def test_a_single_image_file_is_a_source_of_one(tmp_path: Path) -> None:
    write_files(tmp_path, {"one.png": encoded(pixels(0))})
    assert len(open_images(tmp_path / "one.png", "data.path").names) == 1
    data = ready(tmp_path / "one.png")
    assert data.sizes == {"train": 1, "val": 0, "test": 0}


@pytest.mark.filterwarnings("ignore:skipped 1 of the")
def test_a_bomb_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    files = {**images(10), "bomb.png": encoded(np.zeros((100, 100), np.uint8))}
    assert "decompression bomb" in ready(write_files(tmp_path / "folder", files)).skipped_files[0]


def test_reading_in_any_order_gives_the_same(tmp_path: Path) -> None:
    for name in ("folder", "a.tar", "a.tar.gz", "a.zip"):
        files = open_images(write_files(tmp_path / name, images(5)), "data.path")
        for index in (3, 0, 4):
            Image.open(io.BytesIO(files.read(index))).verify()
            assert files.read(index) == images(5)[files.names[index]]
