"""MNIST in black and white: each pixel is one with the probability that its grey value states."""

from __future__ import annotations

from datamodules.mnist import PADDING, IdxDataModule


class BinarizedMNIST(IdxDataModule):
    """Handwritten digits with x = 1[u < pixel / 255], float32 (n, 1, 28 + 2p, 28 + 2p) of 0 and 1, the border 0.

    The usual protocol of the literature on deep generative models (Salakhutdinov and Murray, ICML 2008), with our own
    seeded u, not the fixed files of Larochelle and Murray (2011). Validation and test images are drawn once.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: validation, test or prediction images per step and process.
        validation_size: images that a seeded permutation of the training set sets apart.
        seed: of the splits, the order and the binarisation.
        root: folder that holds ``MNIST/raw``; by default $ALWS_DATA, else ``data``.
        download: fetch missing files into ``root``.
        dynamic: draw the training images anew at each step, instead of once.
        padding: p, pixels of border on each side.

    Raises UserError as :class:`IdxDataModule` does.
    """

    likelihood = "bernoulli"
    folder = "MNIST"

    def __init__(
        self,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        validation_size: int = 5000,
        seed: int = 0,
        root: str | None = None,
        download: bool = True,
        dynamic: bool = False,
        padding: int = PADDING,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, validation_size, seed, root, download, padding)
        self.save_hyperparameters(logger=False)
        self.redraws = dynamic
        if dynamic:
            self.name += "-dynamic"
