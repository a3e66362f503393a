"""Latent-variable models, one file each."""

from lightning_alws.models.image import ImageModel
from lightning_alws.models.matrix_factorisation import MatrixFactorisation

__all__ = ["ImageModel", "MatrixFactorisation"]
