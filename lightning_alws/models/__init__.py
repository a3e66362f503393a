"""Latent-variable models, one file each."""

from lightning_alws.models.blowfly import BlowflyModel
from lightning_alws.models.circle import CircleModel
from lightning_alws.models.gp_latent import GaussianProcessModel
from lightning_alws.models.hodgkin_huxley import HodgkinHuxleyModel
from lightning_alws.models.ica import ICA, IndependentComponents
from lightning_alws.models.image import ImageModel
from lightning_alws.models.linear_dynamics import LinearDynamicsModel
from lightning_alws.models.linear_gaussian import LinearGaussianModel
from lightning_alws.models.matrix_factorisation import MatrixFactorisation
from lightning_alws.models.neural_dynamics import NeuralDynamicsModel
from lightning_alws.models.neural_process import NeuralProcessModel
from lightning_alws.models.scale_mixture import ScaleMixtureModel
from lightning_alws.models.softplus_toy import SoftplusToy
from lightning_alws.models.warped_mixture import WarpedMixtureModel

__all__ = [
    "ICA",
    "BlowflyModel",
    "CircleModel",
    "GaussianProcessModel",
    "HodgkinHuxleyModel",
    "ImageModel",
    "IndependentComponents",
    "LinearDynamicsModel",
    "LinearGaussianModel",
    "MatrixFactorisation",
    "NeuralDynamicsModel",
    "NeuralProcessModel",
    "ScaleMixtureModel",
    "SoftplusToy",
    "WarpedMixtureModel",
]
