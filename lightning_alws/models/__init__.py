"""Latent-variable models, one file each."""

from lightning_alws.models.blowfly import BlowflyModel
from lightning_alws.models.circle import CircleModel
from lightning_alws.models.gp_latent import GaussianProcessModel
from lightning_alws.models.image import ImageModel
from lightning_alws.models.linear_gaussian import LinearGaussianModel
from lightning_alws.models.matrix_factorisation import MatrixFactorisation
from lightning_alws.models.neural_process import NeuralProcessModel
from lightning_alws.models.softplus_toy import SoftplusToy
from lightning_alws.models.warped_mixture import WarpedMixtureModel

__all__ = [
    "BlowflyModel",
    "CircleModel",
    "GaussianProcessModel",
    "ImageModel",
    "LinearGaussianModel",
    "MatrixFactorisation",
    "NeuralProcessModel",
    "SoftplusToy",
    "WarpedMixtureModel",
]
