"""Competing methods, one file each, around the same generative parts."""

from lightning_alws.baselines.vae import VariationalAutoencoder

__all__ = ["VariationalAutoencoder"]
