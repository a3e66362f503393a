"""Latent-variable models, one file each."""

from lightning_alws.models.image import ImageModel
from lightning_alws.models.neural_process import NeuralProcessModel

__all__ = ["ImageModel", "NeuralProcessModel"]
