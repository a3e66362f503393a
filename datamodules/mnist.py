"""MNIST and Fashion-MNIST as grey images of 28 x 28 pixels, padded to 32 x 32 by default."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from datamodules.idx import IdxFolder, default_root
from datamodules.images import ImageDataModule
from lightning_alws.errors import check_at_least

SIDE = 28  # pixels of the files' images
PADDING = 2


class IdxDataModule(ImageDataModule):
    """What the data sets in MNIST's format share: files found or downloaded, black padding.

    Images are float32 (n, 1, 28 + 2p, 28 + 2p) in [-1, 1], the border exactly -1; test images are the official ones.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: validation, test or prediction images per step and process.
        validation_size: images that a seeded permutation of the training set sets apart.
        seed: of the splits, the order and, where there is one, the binarisation.
        root: folder that holds ``MNIST/raw`` and its like; by default $ALWS_DATA, else ``data``.
        download: fetch missing files into ``root``.
        padding: p, pixels of border on each side; with 2 the images are 32 x 32, as convolutions need them.

    Raises UserError when a size is out of range, or in ``prepare_data`` and ``setup`` when files are missing or broken.
    """

    likelihood = "gaussian"
    num_classes = 10
    white = 255
    folder: str  # below root; also the class of torchvision that knows the addresses

    def __init__(
        self,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        validation_size: int = 5000,
        seed: int = 0,
        root: str | None = None,
        download: bool = True,
        padding: int = PADDING,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, validation_size, seed)
        self.save_hyperparameters(logger=False)
        check_at_least("data", padding=(padding, 0))
        self.padding = padding
        self.image_shape = (1, SIDE + 2 * padding, SIDE + 2 * padding)
        if padding != PADDING:  # other images, of which a classifier of its own is kept under the name
            self.name += f"-{self.image_shape[1]}"
        self.download = download
        self.files = IdxFolder(default_root() if root is None else root, self.folder)

    def prepare_data(self) -> None:
        """Download the missing files, or raise a UserError that names them."""
        if self.download:
            self.files.download()
        self.files.require()

    def read_images(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(pixels, labels) of the official training and test set: uint8 (n, 1, H, W), int64 (n,)."""
        (train, train_labels), (test, test_labels) = (self.files.read(p, self.num_classes) for p in ("train", "test"))
        return (self._framed(train), train_labels), (self._framed(test), test_labels)

    def _framed(self, pixels: Tensor) -> Tensor:
        return pad(pixels, (self.padding,) * 4).to(torch.uint8)


class MNIST(IdxDataModule):
    """Handwritten digits, 60 000 for training and validation, 10 000 for test (LeCun, Cortes and Burges, 1998).

    Arguments and images as in :class:`IdxDataModule`.
    """

    folder = "MNIST"


class FashionMNIST(IdxDataModule):
    """Pictures of clothing, in the numbers and format of MNIST (Xiao, Rasul and Vollgraf, arXiv:1708.07747).

    Arguments and images as in :class:`IdxDataModule`.
    """

    folder = "FashionMNIST"
