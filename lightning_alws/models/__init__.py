"""Latent-variable models, one file each."""

from lightning_alws.models.ica import ICA, IndependentComponents
from lightning_alws.models.image import ImageModel

__all__ = ["ICA", "ImageModel", "IndependentComponents"]
