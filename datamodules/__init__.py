"""Data sets: one file each, every one an ImageDataModule."""

from datamodules.binarized_mnist import BinarizedMNIST
from datamodules.digits import Digits
from datamodules.images import BatchLoader, ImageDataModule
from datamodules.mnist import MNIST, FashionMNIST

__all__ = ["MNIST", "BatchLoader", "BinarizedMNIST", "Digits", "FashionMNIST", "ImageDataModule"]
