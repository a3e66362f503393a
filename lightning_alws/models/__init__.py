"""Latent-variable models, one file each."""

from lightning_alws.models.circle import CircleModel
from lightning_alws.models.image import ImageModel

__all__ = ["CircleModel", "ImageModel"]
