"""Maximum mean discrepancy between two samples, and what it comes to between samples of one law.

    MMD² = E k(x, x') + E k(y, y') − 2 E k(x, y),   k(a, b) = exp(−‖a − b‖² / (2 s²))

The unbiased estimate leaves out the pairs of a point with itself; between samples of one law it is 0 on average and
below 0 half of the time. Source: Gretton, Borgwardt, Rasch, Schölkopf, Smola, "A Kernel Two-Sample Test", JMLR 13,
2012 (https://jmlr.org/papers/v13/gretton12a.html), lemma 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.kernels import median_distance, squared_distances
from lightning_alws.precision import full_precision

MEDIAN_ROWS = 2000  # two million pairs


def median_bandwidth(x: Tensor, y: Tensor) -> float:
    """The median distance between the points of both samples, (n, D) and (m, D); of 1000 of each if there are more."""
    half = MEDIAN_ROWS // 2
    return float(median_distance(torch.cat([x[:half], y[:half]]).double()))


def squared_mmd(x: Tensor, y: Tensor, bandwidth: float | None = None) -> float:
    """The unbiased estimate of MMD² between two samples, in float64.

    Args:
        x: first sample (n, D), n ≥ 2.
        y: second sample (m, D), m ≥ 2.
        bandwidth: s; by default the median distance between points of both.

    Raises:
        UserError: the samples have fewer than two points, are no matrices of equal width, or the bandwidth is not
            positive.
    """
    _check(x, y)
    gram = _gram(torch.cat([x, y]), median_bandwidth(x, y) if bandwidth is None else bandwidth)
    first = torch.arange(len(gram), device=gram.device) < len(x)
    return float(_squared_mmds(gram, first[:, None])[0])


def null_distribution(
    pool: Tensor,
    size: int,
    bandwidth: float,
    repeats: int,
    generator: torch.Generator,
) -> Tensor:
    """The unbiased MMD² of ``repeats`` random splits of one sample in two, float64 (repeats,) on the CPU.

    With a pool of data alone, this is how much two samples of the data differ by chance. With a pool of both samples
    of a comparison, it is the null distribution of the permutation test.

    Args:
        pool: (n, D).
        size: points in the first part; the others are the second.
        bandwidth: s, the same as for what is to be compared.
        repeats: number of splits.
        generator: a CPU generator that draws the splits.

    Raises:
        UserError: a part has fewer than two points, there are no repeats, or the bandwidth is not positive.
    """
    if repeats < 1:
        raise UserError(f"repeats is {repeats}; give at least 1, and some hundreds for a quantile far out.")
    if not 2 <= size <= len(pool) - 2:
        raise UserError(f"size is {size} for a pool of {len(pool)} points; give 2 to {len(pool) - 2}.")
    _check(pool[:size], pool[size:])
    gram = _gram(pool, bandwidth)
    ranks = torch.stack([torch.randperm(len(pool), generator=generator) for _ in range(repeats)], dim=1)
    return _squared_mmds(gram, (ranks < size).to(gram.device)).cpu()


def _check(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise UserError(
            f"the samples of an MMD have shapes {tuple(x.shape)} and {tuple(y.shape)}; give two matrices (n, D) and "
            "(m, D) with at least two rows each."
        )


def _gram(points: Tensor, bandwidth: float) -> Tensor:
    """k of all pairs, float64, its diagonal 0: no point is compared with itself."""
    if not bandwidth > 0:
        raise UserError(f"bandwidth is {bandwidth}; give a positive number.")
    points = points.double()
    with full_precision(points.device):
        squared = squared_distances(points, points)
    return squared.mul_(-0.5 / bandwidth**2).exp_().fill_diagonal_(0.0)


def _squared_mmds(gram: Tensor, first: Tensor) -> Tensor:
    """MMD² for each of R ways to split n points in two; ``first`` (n, R) tells who is in the first part."""
    n = first.sum(0).double()
    m = len(gram) - n
    left = first.double()
    # Σ over pairs, by the sums of each point over all others, and over those of the first part.
    all_sums, left_sums = gram.sum(1), gram @ left
    within = (left * left_sums).sum(0)
    across = left.T @ all_sums - within
    rest = all_sums.sum() - within - 2 * across
    return within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * across / (n * m)
