"""Tiny sets of random images in the published formats of CIFAR-10, SVHN and CelebA, a folder and two photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from image_files import encoded, pixels, write_files
from scipy.io import savemat

CIFAR10_FILES = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
FACES = [0] * 20 + [1] * 6 + [2] * 6  # how many are for training, validation and test
COLOUR_AND_PATCHES = ("CIFAR10", "CelebA", "ImageFolder", "NaturalPatches", "SVHN")


def options_of(data: str, root: Path) -> list[str]:
    """What a command line needs beside ``--data`` for a set below ``root``."""
    if data == "CelebA":
        return []
    if data == "ImageFolder":
        return ["--data.path", str(root / "pictures")]
    few = ["--data.validation_size", "10"]
    if data == "NaturalPatches":
        return [*few, "--data.source", str(root / "photographs"), "--data.train_size", "40", "--data.test_size", "10"]
    return [*few, "--data.verify_checksum", "false"]


def write_image_sets(root: Path) -> Path:
    """All of them below ``root``, where a data module looks for them, which is returned."""
    random = np.random.default_rng(0)
    (root / "cifar-10-batches-bin").mkdir(parents=True)
    for name in CIFAR10_FILES:
        rows = random.integers(0, 256, (8, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        (root / "cifar-10-batches-bin" / name).write_bytes(rows.tobytes())
    (root / "SVHN").mkdir()
    for part, count in (("train", 40), ("test", 10)):
        images = random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        digits = 1 + np.arange(count, dtype=np.uint8)[:, None] % 10
        savemat(root / "SVHN" / f"{part}_32x32.mat", {"X": images, "y": digits})
    faces = {f"{number + 1:06}.jpg": encoded(pixels(number, 218, 178), "JPEG") for number in range(len(FACES))}
    write_files(root / "celeba" / "img_align_celeba", faces)
    parts = "".join(f"{name} {part}\n" for name, part in zip(faces, FACES, strict=True))
    (root / "celeba" / "list_eval_partition.txt").write_text(parts)
    folder = {f"{'ab'[number % 2]}/{number}.png": encoded(pixels(number, 40, 36)) for number in range(40)}
    write_files(root / "pictures", folder)
    write_files(root / "photographs", {f"{number}.png": encoded(pixels(number, 50, 60)) for number in range(4)})
    return root
