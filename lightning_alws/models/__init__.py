"""Latent-variable models, one file each."""

from lightning_alws.models.image import ImageModel
from lightning_alws.models.warped_mixture import WarpedMixtureModel

__all__ = ["ImageModel", "WarpedMixtureModel"]
