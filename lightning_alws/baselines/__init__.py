"""Competing methods, one file each, around the same generative parts."""

from lightning_alws.baselines.al_nn import NetworkLearning
from lightning_alws.baselines.al_p import ParticleLearning
from lightning_alws.baselines.dlgm import DLGM
from lightning_alws.baselines.iwae import IWAE
from lightning_alws.baselines.lae import LangevinAutoencoder
from lightning_alws.baselines.logistic_normal_vae import LogisticNormalVAE
from lightning_alws.baselines.neural_process import NeuralProcessELBO
from lightning_alws.baselines.rws import ReweightedWakeSleep
from lightning_alws.baselines.sivi import SIVI
from lightning_alws.baselines.sylvester import SylvesterVAE
from lightning_alws.baselines.vae import ImageVAE, VariationalAutoencoder
from lightning_alws.baselines.vae_flow import PlanarFlowVAE
from lightning_alws.baselines.wgan_gp import WGANGP

__all__ = [
    "DLGM",
    "IWAE",
    "SIVI",
    "WGANGP",
    "ImageVAE",
    "LangevinAutoencoder",
    "LogisticNormalVAE",
    "NetworkLearning",
    "NeuralProcessELBO",
    "ParticleLearning",
    "PlanarFlowVAE",
    "ReweightedWakeSleep",
    "SylvesterVAE",
    "VariationalAutoencoder",
]
