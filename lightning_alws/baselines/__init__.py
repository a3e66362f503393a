"""Competing methods, one file each, around the same generative parts."""

from lightning_alws.baselines.neural_process import NeuralProcessELBO

__all__ = [
    "NeuralProcessELBO",
]
