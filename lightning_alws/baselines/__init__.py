"""Competing methods, one file each, around the same generative parts."""

from lightning_alws.baselines.iwae import IWAE
from lightning_alws.baselines.logistic_normal_vae import LogisticNormalVAE
from lightning_alws.baselines.neural_process import NeuralProcessELBO
from lightning_alws.baselines.rws import ReweightedWakeSleep
from lightning_alws.baselines.vae import ImageVAE, VariationalAutoencoder
from lightning_alws.baselines.wgan_gp import WGANGP

__all__ = [
    "IWAE",
    "WGANGP",
    "ImageVAE",
    "LogisticNormalVAE",
    "NeuralProcessELBO",
    "ReweightedWakeSleep",
    "VariationalAutoencoder",
]
