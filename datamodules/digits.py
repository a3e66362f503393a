"""The handwritten digits that come with scikit-learn: small enough to learn from in a minute, and always at hand."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from datamodules.images import ImageDataModule
from lightning_alws.noise import generator

TEST_SIZE = 297


class Digits(ImageDataModule):
    """1797 real 8 x 8 scans with grey values 0..16, images (n, 1, 8, 8) (Alpaydin and Kaynak, UCI, 1998).

    A seeded permutation sets 297 digits apart for test; 1500 remain for training and validation.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: validation, test or prediction images per step and process.
        validation_size: how many of the 1500 are for validation.
        seed: of the splits, the order and the binarisation.
        binarize: x = 1[u < pixel / 16], float32 0 or 1: training images drawn anew at each step, the others once.
            Otherwise grey, pixel / 8 - 1 in [-1, 1].

    Raises UserError when a size is out of range.
    """

    image_shape = (1, 8, 8)
    num_classes = 10
    white = 16

    def __init__(
        self,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        validation_size: int = 150,
        seed: int = 0,
        binarize: bool = True,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, validation_size, seed)
        self.save_hyperparameters(logger=False)
        self.redraws = binarize
        self.likelihood = "bernoulli" if binarize else "gaussian"
        if not binarize:
            self.name += "-grey"

    def read_images(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(pixels, labels) of 1500 digits and of 297: uint8 (n, 1, 8, 8) of 0..16, int64 (n,)."""
        digits = load_digits()
        pixels = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(digits.target).long()
        order = torch.randperm(len(pixels), generator=generator(self.seed, "test"))
        test, rest = order[:TEST_SIZE], order[TEST_SIZE:]
        return (pixels[rest], labels[rest]), (pixels[test], labels[test])
