"""The Street View House Numbers, cropped digits, from their MATLAB files.

Each file holds ``X``, uint8 (32, 32, 3, n), and ``y``, (n, 1) with 1 to 10, where 10 stands for the digit 0. Source:
Y. Netzer et al., "Reading digits in natural images with unsupervised feature learning", 2011
(http://ufldl.stanford.edu/housenumbers).
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datamodules.download import fetch, require_md5
from datamodules.idx import ROOT_VARIABLE, default_root
from datamodules.images import ImageDataModule
from lightning_alws.errors import UserError

SHAPE = (3, 32, 32)
ADDRESS = "http://ufldl.stanford.edu/housenumbers/"
# As torchvision lists them.
MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
}


class SVHN(ImageDataModule):
    """House numbers, images (n, 3, 32, 32) in [-1, 1] of the digits 0 to 9: 73 257 for training, 26 032 for test.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: validation, test or prediction images per step and process.
        validation_size: images that a seeded permutation of the training set sets apart.
        seed: of the splits and the order.
        root: folder that holds ``train_32x32.mat`` and its like, itself or in ``SVHN``; by default $ALWS_DATA, else
            ``data``.
        download: fetch missing files into ``root/SVHN`` (182 MB for training, 64 MB for test, 1.3 GB extra).
        extra: train on the 531 131 simpler extra images too.
        verify_checksum: compare the files with their published MD5s.
        device_megabytes: a split of more (2²⁰ bytes of pixels) is not held on the device, but copied to it by batch.

    Raises UserError when a size is out of range, or in ``prepare_data`` and ``setup`` when files are missing or broken.
    """

    likelihood = "gaussian"
    image_shape = SHAPE
    num_classes = 10
    white = 255

    def __init__(
        self,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        validation_size: int = 5000,
        seed: int = 0,
        root: str | None = None,
        download: bool = True,
        extra: bool = False,
        verify_checksum: bool = True,
        device_megabytes: int = 4096,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, validation_size, seed)
        self.save_hyperparameters(logger=False)
        self.root, self.download, self.verify_checksum = (
            Path(root or default_root()).expanduser(),
            download,
            verify_checksum,
        )
        self.device_megabytes = device_megabytes
        self.files = ["train_32x32.mat", *(["extra_32x32.mat"] if extra else []), "test_32x32.mat"]
        if extra:
            self.name += "-extra"

    def prepare_data(self) -> None:
        """Download the missing files, or raise a UserError that names them."""
        reasons = []
        for name in self._missing() if self.download else []:
            reasons.append(fetch(self.root / "SVHN", name, [ADDRESS + name], MD5[name]))
        if missing := self._missing():
            failed = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
            raise UserError(
                f"SVHN is not complete in root={self.root}: there is no {' and no '.join(missing)}, nor in its folder "
                f"SVHN{f', and the download failed ({failed})' if failed else ''}. Set the argument root, or "
                f"{ROOT_VARIABLE} in the environment, to the folder that holds them, or set download=true where there "
                "is a network."
            )

    def read_images(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(pixels, labels) of the official training and test set: uint8 (n, 3, 32, 32), int64 (n,)."""
        if self._missing():
            self.prepare_data()
        parts = []
        for name in self.files:
            path = self._find(name)
            assert path is not None, "prepare_data() found it"
            parts.append(read_cropped_digits(path, MD5[name] if self.verify_checksum else None))
        if len(parts) == 2:
            return parts[0], parts[1]
        return (torch.cat([parts[0][0], parts[1][0]]), torch.cat([parts[0][1], parts[1][1]])), parts[2]

    def _find(self, name: str) -> Path | None:
        # os.path.exists, unlike Path.exists, takes a folder that may not be entered for an empty one
        places = (self.root / "SVHN" / name, self.root / name)
        return next((path for path in places if os.path.exists(path)), None)

    def _missing(self) -> list[str]:
        return [name for name in self.files if self._find(name) is None]


def read_cropped_digits(path: Path, md5: str | None = None) -> tuple[Tensor, Tensor]:
    """Images uint8 (n, 3, 32, 32) and the digits they show, int64 (n,).

    Raises:
        UserError: the file cannot be read, has another MD5, is no MATLAB file, or holds something else; it names it.
    """
    from scipy.io import loadmat  # half a second to import

    try:
        stored = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error
    if md5 is not None:
        require_md5(path, stored, md5)
    try:
        content = loadmat(io.BytesIO(stored), variable_names=("X", "y"))
        pixels, digits = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1)
    except Exception as error:  # of any kind, from a damaged file
        raise _broken(path, "a MATLAB file with X and y", f"what is none ({error})") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3) or pixels.shape[3] == 0:
        raise _broken(path, "X as uint8 of 32 x 32 x 3 x n", f"{pixels.dtype} of {' x '.join(map(str, pixels.shape))}")
    if len(digits) != pixels.shape[3]:
        raise _broken(path, f"{pixels.shape[3]} labels, one for each image", str(len(digits)))
    if not np.isin(digits, np.arange(1, 11)).all():
        raise _broken(path, "labels from 1 to 10", f"{digits.min()} to {digits.max()}")
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    return images, torch.from_numpy(digits.astype(np.int64)) % 10


def _broken(path: Path, expected: str, found: str) -> UserError:
    return UserError(f"{path} is broken: expected {expected}, found {found}; fetch it anew.")
