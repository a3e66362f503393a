"""Data sets, one file each: images (ImageDataModule) and other observations (ArrayDataModule)."""

from datamodules.arrays import ArrayDataModule
from datamodules.binarized_mnist import BinarizedMNIST
from datamodules.blowfly import Blowfly, BlowflySimulated
from datamodules.celeba import CelebA
from datamodules.cifar10 import CIFAR10
from datamodules.digits import Digits
from datamodules.gabors import Gabors
from datamodules.gp_series import GaussianProcessSeries
from datamodules.ica_mixtures import ICAMixtures
from datamodules.image_folder import ImageFolder
from datamodules.images import ImageDataModule
from datamodules.linear_dynamics import LinearDynamicsData
from datamodules.linear_gaussian import LinearGaussianData
from datamodules.loader import BatchLoader, DeviceDataModule
from datamodules.mnist import MNIST, FashionMNIST
from datamodules.natural_patches import NaturalPatches
from datamodules.pinwheel import Pinwheel
from datamodules.sine_functions import SineFunctions
from datamodules.sinusoid import Sinusoid
from datamodules.softplus_toy import SoftplusData
from datamodules.svhn import SVHN
from datamodules.table import Table
from datamodules.voltage_trace import VoltageTrace

__all__ = [
    "CIFAR10",
    "MNIST",
    "SVHN",
    "ArrayDataModule",
    "BatchLoader",
    "BinarizedMNIST",
    "Blowfly",
    "BlowflySimulated",
    "CelebA",
    "DeviceDataModule",
    "Digits",
    "FashionMNIST",
    "Gabors",
    "GaussianProcessSeries",
    "ICAMixtures",
    "ImageDataModule",
    "ImageFolder",
    "LinearDynamicsData",
    "LinearGaussianData",
    "NaturalPatches",
    "Pinwheel",
    "SineFunctions",
    "Sinusoid",
    "SoftplusData",
    "Table",
    "VoltageTrace",
]
