"""Fréchet and kernel distance between two sets of features, with torchmetrics' arithmetic and our own randomness.

Fréchet distance (FID): ‖μ₁ − μ₂‖² + Tr(C₁ + C₂ − 2 (C₁ C₂)^½); Heusel et al., "GANs trained by a two time-scale
update rule", NeurIPS 2017 (https://arxiv.org/abs/1706.08500). Biased upwards by about c/n: compare at equal n only.

Kernel distance (KID): the unbiased squared MMD with the kernel (⟨a, b⟩/d + 1)³; Bińkowski et al., "Demystifying MMD
GANs", ICLR 2018 (https://arxiv.org/abs/1801.01401).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from lightning_alws.errors import UserError


class _Precomputed(nn.Identity):
    """Stands where torchmetrics expects a network from images to features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _finite(real: Tensor, fake: Tensor) -> bool:
    """Whether there is a distance at all: a model that has diverged gets nan, not an error from an eigensolver."""
    return bool(real.isfinite().all() and fake.isfinite().all())


def _check(real: Tensor, fake: Tensor) -> None:
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise UserError(
            f"features must be two matrices (n, d) and (m, d), but have shapes {tuple(real.shape)} and "
            f"{tuple(fake.shape)}."
        )


@torch.no_grad()
def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """The Fréchet distance between Gaussians fitted to the two sets, in float64; nan if a feature is not finite.

    Args:
        real: features (n, d).
        fake: features (m, d).

    Raises:
        UserError: shapes that do not fit, or fewer than two rows.
    """
    _check(real, fake)
    if min(len(real), len(fake)) < 2:
        raise UserError(f"the Fréchet distance needs two samples a side, but got {len(real)} and {len(fake)}.")
    if not _finite(real, fake):
        return math.nan
    # The features are already those of all processes; torchmetrics would otherwise add them up over the ranks again.
    metric = FrechetInceptionDistance(feature=_Precomputed(real.shape[1]), sync_on_compute=False).to(real.device)
    metric.update(real.double(), real=True)
    metric.update(fake.double().to(real.device), real=False)
    return float(metric.compute())


@torch.no_grad()
def kernel_distance(
    real: Tensor, fake: Tensor, subset_size: int, subsets: int, generator: torch.Generator
) -> tuple[float, float]:
    """The unbiased squared MMD, averaged over random subsets, in float64; nan if a feature is not finite.

    Args:
        real: features (n, d).
        fake: features (m, d).
        subset_size: rows drawn from either side for one subset, without replacement, at least 2.
        subsets: number of subsets.
        generator: a CPU generator that draws the subsets.

    Returns:
        Mean and standard deviation over the subsets. The subsets overlap, so that the deviation is **not** a standard
        error of the mean (nor is it one after division by the root of ``subsets``): it says how much one subset
        scatters. The mean can be slightly negative, as every unbiased estimate of zero.

    Raises:
        UserError: shapes that do not fit, fewer rows than ``subset_size``, or no subset.
    """
    _check(real, fake)
    if not 2 <= subset_size <= min(len(real), len(fake)) or subsets < 1:
        raise UserError(
            f"the kernel distance got subsets={subsets} of subset_size={subset_size} from {len(real)} and {len(fake)} "
            f"samples; give at least one subset, of 2 to {min(len(real), len(fake))} samples."
        )
    if not _finite(real, fake):
        return math.nan, math.nan
    real, fake = real.double(), fake.double()
    values = []
    for _ in range(subsets):
        rows = torch.randperm(len(real), generator=generator)[:subset_size].to(real.device)
        columns = torch.randperm(len(fake), generator=generator)[:subset_size].to(fake.device)
        values.append(poly_mmd(real[rows], fake[columns]))
    scores = torch.stack(values)
    return float(scores.mean()), float(scores.std(correction=0))
