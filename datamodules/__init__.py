"""Data sets, one file each: images (ImageDataModule) and other observations (ArrayDataModule)."""

from datamodules.arrays import ArrayDataModule
from datamodules.binarized_mnist import BinarizedMNIST
from datamodules.digits import Digits
from datamodules.ica_mixtures import ICAMixtures
from datamodules.images import ImageDataModule
from datamodules.loader import BatchLoader, DeviceDataModule
from datamodules.mnist import MNIST, FashionMNIST
from datamodules.table import Table

__all__ = [
    "MNIST",
    "ArrayDataModule",
    "BatchLoader",
    "BinarizedMNIST",
    "DeviceDataModule",
    "Digits",
    "FashionMNIST",
    "ICAMixtures",
    "ImageDataModule",
    "Table",
]
