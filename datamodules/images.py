"""Images kept as one uint8 tensor on the device: the base class of the image data sets, and their loader."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.noise import generator, mix_seed

SPLITS = ("train", "val", "test")


def scale(pixels: Tensor, white: int) -> Tensor:
    """uint8 pixels 0..``white`` as floats in [-1, 1]; black is exactly -1 and white exactly 1."""
    return pixels.float().div_(white).mul_(2).sub_(1)


def binarise(pixels: Tensor, white: int, seed: int) -> Tensor:
    """x = 1[u < pixel / ``white``], float 0 or 1, with uniform u drawn on the pixels' device from the seed."""
    u = torch.rand(pixels.shape, generator=torch.Generator(pixels.device).manual_seed(seed), device=pixels.device)
    return (u < pixels.float().div_(white)).float()


class BatchLoader:
    """Batches of float images, picked from one uint8 tensor and converted on its device.

    The order of epoch e is a permutation seeded by (seed, "order", e), the same on every rank; the seed handed to
    ``convert`` for batch i mixes (seed, "binarise", rank, e, i). The global generators are never touched.

    Of W ranks, rank r takes every W-th image of the order, from the r-th on. Shuffled (training), the last n mod W
    images of the order are left out; otherwise (evaluation) the shards wrap around, so that up to W - 1 images are
    seen twice. All ranks thus have equal batches, and one rank alone sees every image once, the last batch smaller.

    Args:
        pixels: uint8 images (n, C, H, W); ``convert`` makes floats of a batch of them and a seed.
        batch_size: images per batch and rank.
        shuffle: a new order each epoch, otherwise that of ``pixels``.
        rank, world_size: this process, 0..world_size - 1, and how many share the images.

    Raises UserError if ``batch_size`` is below 1 or there are too few images to share.
    """

    batch_sampler: None = None  # Lightning asks for it once a loader has a sampler

    def __init__(
        self,
        pixels: Tensor,
        convert: Callable[[Tensor, int], Tensor],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _require_positive("batch_size", batch_size)
        n = len(pixels)
        if n < (world_size if shuffle else 1):
            raise UserError(f"{n} images are too few for world_size={world_size}; provide one or more per process.")
        self.pixels, self.convert, self.batch_size, self.seed = pixels, convert, batch_size, seed
        self.shuffle, self.rank, self.world_size = shuffle, rank, world_size
        self._shard_size = n // world_size if shuffle else -(-n // world_size)
        self._epoch = 0
        self._position = 0  # batches of the epoch handed out
        self._restored = False  # a state was loaded and no batch handed out since
        self._lead = 0  # how far Lightning's count of epochs is ahead of ours

    @property
    def sampler(self) -> BatchLoader:
        """The loader itself: Lightning calls ``loader.sampler.set_epoch``."""
        return self

    def __len__(self) -> int:
        """Batches per epoch, equal on all ranks."""
        return -(-self._shard_size // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration.

        A restored loader first finishes the epoch it was in, under whatever number, and keeps that lead from then on:
        Lightning counts an epoch that ``max_steps`` cut as done, and after a resume may count one without batches.
        """
        if self._restored:
            if epoch > self._epoch and self._position >= len(self):
                self._epoch, self._position = self._epoch + 1, 0
            self._lead = epoch - self._epoch
        elif epoch - self._lead != self._epoch:
            self._epoch, self._position = epoch - self._lead, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were handed out (``position``). Lightning stores it in checkpoints."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iteration begin at batch ``position`` of ``epoch``; later ones begin at batch 0."""
        self._epoch, self._position = state_dict["epoch"], state_dict["position"]
        self._restored, self._lead = True, 0

    def indices(self, epoch: int) -> Tensor:
        """This rank's image indices in the order of the epoch, int64 on the CPU."""
        n = len(self.pixels)
        order = torch.randperm(n, generator=generator(self.seed, "order", epoch)) if self.shuffle else torch.arange(n)
        return order[(torch.arange(self._shard_size) * self.world_size + self.rank) % n]

    def __iter__(self) -> Iterator[Tensor]:
        """Batches (B, C, H, W), float32, on the device of the pixels.

        The epoch is read when the first batch is asked for, not before: Lightning makes the first iterator of a run
        before it calls :meth:`set_epoch`, and keeps it after a resume.
        """
        epoch, start = self._epoch, self._position if self._restored else 0
        self._restored = False
        batches = self.indices(epoch).to(self.pixels.device).split(self.batch_size)
        for i in range(start, len(batches)):
            self._position = i + 1
            yield self.convert(self.pixels[batches[i]], mix_seed(self.seed, "binarise", self.rank, epoch, i))


class ImageDataModule(pl.LightningDataModule):
    """Training, validation and test images (C, H, W) with labels, held whole on the training device.

    A data set sets the attributes below, before any data is read, and implements :meth:`read`. All images are float32
    in the space of the likelihood: {0, 1} for "bernoulli", [-1, 1] for "gaussian". Only training images may change.

    Args:
        batch_size: training images per step and process.
        eval_batch_size: validation, test or prediction images per step and process.
        validation_size: images that a seeded permutation of the training set sets apart.
        seed: of the splits, the order and the binarisation.

    Raises UserError for a batch size below 1 or a negative ``validation_size``.
    """

    image_shape: tuple[int, int, int]  # (C, H, W), padding included
    likelihood: str  # "bernoulli" or "gaussian"
    num_classes: int  # labels are 0..num_classes - 1
    name: str  # the class, and what changes the images
    white: int  # the pixel value of full intensity
    redraws: bool = False  # whether training images are binarised anew at each step

    def __init__(self, batch_size: int, eval_batch_size: int, validation_size: int, seed: int) -> None:
        super().__init__()
        _require_positive("batch_size", batch_size)
        _require_positive("eval_batch_size", eval_batch_size)
        if validation_size < 0:
            raise UserError(f"validation_size={validation_size} is negative; set it to 0 or more images.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.validation_size, self.seed = validation_size, seed
        self.name = type(self).__name__
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def read(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(pixels, labels) of the training and of the test set: uint8 (n, C, H, W) of 0..white, int64 (n,)."""

    def setup(self, stage: str | None = None) -> None:
        """Read and split the images once, and put them on the trainer's device (the CPU without a trainer).

        Raises UserError if ``validation_size`` is not below the number of images, or files are missing or broken.
        """
        self._splits = self._splits or self._read_splits()
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        self._splits = {split: (x.to(device), y.to(device)) for split, (x, y) in self._splits.items()}

    def _read_splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        (pixels, labels), test = self.read()
        n, k = len(pixels), self.validation_size
        if k >= n:
            raise UserError(f"validation_size={k} takes all {n} training images of {self.name}; set it below {n}.")
        order = torch.randperm(n, generator=generator(self.seed, "validation"))
        val, train = order[:k], order[k:]
        splits = {"train": (pixels[train], labels[train]), "val": (pixels[val], labels[val]), "test": test}
        for split, (x, y) in splits.items():
            if self.likelihood == "bernoulli" and not self._redrawn(split):
                splits[split] = self._fixed_draw(x, split).to(torch.uint8), y
        return splits

    def _redrawn(self, split: str) -> bool:
        return self.redraws and split == "train"

    def _fixed_draw(self, pixels: Tensor, split: str) -> Tensor:
        """One binarisation of a whole split, drawn on the CPU so that it is the same on every machine."""
        return binarise(pixels.cpu(), self.white, mix_seed(self.seed, "binarise", split))

    def _convert(self, split: str) -> Callable[[Tensor, int], Tensor]:
        if self.likelihood == "gaussian":
            return lambda pixels, seed: scale(pixels, self.white)
        if self._redrawn(split):
            return lambda pixels, seed: binarise(pixels, self.white, seed)
        return lambda pixels, seed: pixels.float()

    def _of(self, split: str) -> tuple[Tensor, Tensor]:
        if split not in SPLITS:
            raise ValueError(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
        if not self._splits:
            raise RuntimeError(f"{self.name} has read no images yet; call prepare_data() and setup() first.")
        return self._splits[split]

    def images(self, split: str) -> Tensor:
        """All of a split, float32 (n, C, H, W); where redrawn, one fixed draw. ValueError for an unknown split."""
        pixels, _ = self._of(split)
        if self._redrawn(split):
            return self._fixed_draw(pixels, split).to(pixels.device)
        return self._convert(split)(pixels, 0)

    def labels(self, split: str) -> Tensor:
        """Class of each of :meth:`images`, int64 (n,). ValueError for an unknown split."""
        return self._of(split)[1]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images of each split, all ranks together."""
        return {split: len(self._of(split)[1]) for split in SPLITS}

    def _loader(self, split: str, batch_size: int, shuffle: bool) -> BatchLoader:
        pixels, _ = self._of(split)
        if len(pixels) == 0:
            raise UserError(f"validation_size=0 leaves no {split} images; set it above 0, or set limit_val_batches=0.")
        ranks = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return BatchLoader(pixels, self._convert(split), batch_size, self.seed, shuffle, *ranks)

    def train_dataloader(self) -> BatchLoader:
        """Training batches in a new order each epoch, or in one order under ``overfit_batches``."""
        # Lightning can switch off the shuffling of torch's own DataLoader only
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return self._loader("train", self.batch_size, shuffle=not overfit)

    def val_dataloader(self) -> BatchLoader:
        """Validation batches, always the same."""
        return self._loader("val", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> BatchLoader:
        """Test batches, always the same."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    predict_dataloader = test_dataloader

    def transfer_batch_to_device(self, batch: Tensor, device: torch.device, dataloader_idx: int) -> Tensor:
        """The batch itself where the loader made it on the device already."""
        return batch if batch.device == device else batch.to(device)


def _require_positive(argument: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{argument}={value} is below 1; set it to 1 or more images.")
