"""Competing methods, one file each, around the same generative parts."""

from lightning_alws.baselines.logistic_normal_vae import LogisticNormalVAE

__all__ = ["LogisticNormalVAE"]
