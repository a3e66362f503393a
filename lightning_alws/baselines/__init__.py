"""Competing methods, one file each, around the same generative parts."""

from lightning_alws.baselines.dlgm import DLGM
from lightning_alws.baselines.iwae import IWAE
from lightning_alws.baselines.lae import LangevinAutoencoder
from lightning_alws.baselines.logistic_normal_vae import LogisticNormalVAE
from lightning_alws.baselines.neural_process import NeuralProcessELBO
from lightning_alws.baselines.vae import ImageVAE, VariationalAutoencoder

__all__ = [
    "DLGM",
    "IWAE",
    "ImageVAE",
    "LangevinAutoencoder",
    "LogisticNormalVAE",
    "NeuralProcessELBO",
    "VariationalAutoencoder",
]
