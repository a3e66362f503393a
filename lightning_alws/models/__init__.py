"""Latent-variable models, one file each."""

from lightning_alws.models.image import ImageModel
from lightning_alws.models.softplus_toy import SoftplusToy

__all__ = ["ImageModel", "SoftplusToy"]
