"""FID and KID against scipy's matrix square root and a loop over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from lightning_alws.errors import UserError
from lightning_alws.metrics.distances import frechet_distance, kernel_distance


def two_sets(count: int = 300, width: int = 8) -> tuple[Tensor, Tensor]:
    mixing = torch.randn(width, width)
    return torch.randn(count, width) @ mixing + 3, torch.randn(count, width) @ mixing.T + 2


def frechet_by_scipy(real: Tensor, fake: Tensor) -> float:
    a, b = real.double().numpy(), fake.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    mean = a.mean(0) - b.mean(0)
    return float(mean @ mean + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))


def mmd_by_loops(real: Tensor, fake: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    m = len(real)
    pairs = [(i, j) for i in range(m) for j in range(m)]
    within = sum(kernel(s[i], s[j]) for s in (real, fake) for i, j in pairs if i != j) / (m * (m - 1))
    return within - 2 * sum(kernel(real[i], fake[j]) for i, j in pairs) / m**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frechet_distance_is_the_formula(dtype: torch.dtype) -> None:
    real, fake = (features.to(dtype) for features in two_sets())
    assert frechet_distance(real, fake) == pytest.approx(frechet_by_scipy(real, fake), rel=1e-10)


def test_frechet_distance_of_a_set_to_itself_vanishes() -> None:
    real, _ = two_sets()
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_a_shifted_set_is_the_squared_shift() -> None:
    real, _ = two_sets()
    shift = torch.arange(8.0)
    assert frechet_distance(real, real + shift) == pytest.approx(float(shift @ shift), rel=1e-5)


def test_kernel_distance_of_one_whole_subset_is_the_double_sum() -> None:
    real, fake = (features.double() for features in two_sets(20))
    mean, std = kernel_distance(real, fake, 20, 1, torch.Generator())
    assert mean == pytest.approx(mmd_by_loops(real, fake), rel=1e-10)
    assert std == 0


def test_kernel_distance_averages_its_subsets() -> None:
    real, fake = (features.double() for features in two_sets(12))
    mean, std = kernel_distance(real, fake, 5, 7, torch.Generator().manual_seed(3))
    generator, values = torch.Generator().manual_seed(3), []
    for _ in range(7):
        rows, columns = torch.randperm(12, generator=generator)[:5], torch.randperm(12, generator=generator)[:5]
        values.append(mmd_by_loops(real[rows], fake[columns]))
    assert mean == pytest.approx(np.mean(values), rel=1e-10)
    assert std == pytest.approx(np.std(values), rel=1e-10)


def test_kernel_distance_is_unbiased_at_equal_laws() -> None:
    values = torch.tensor(
        [kernel_distance(torch.randn(20, 4), torch.randn(20, 4), 20, 1, torch.Generator())[0] for _ in range(400)]
    )
    assert abs(values.mean()) < 4 * values.std() / 20  # 4 standard errors of 400 independent repetitions


def test_global_random_state_is_untouched() -> None:
    real, fake = two_sets()
    before = torch.get_rng_state()
    frechet_distance(real, fake)
    kernel_distance(real, fake, 50, 3, torch.Generator())
    assert torch.equal(before, torch.get_rng_state())


def test_diverged_features_give_nan() -> None:
    real, fake = two_sets()
    fake[3, 2] = math.inf
    assert math.isnan(frechet_distance(real, fake))
    assert math.isnan(kernel_distance(real, fake, 50, 3, torch.Generator())[0])


@pytest.mark.parametrize(("subset_size", "subsets"), [(1, 5), (301, 5), (50, 0)])
def test_impossible_subsets_are_refused(subset_size: int, subsets: int) -> None:
    with pytest.raises(UserError, match="subset"):
        kernel_distance(*two_sets(), subset_size, subsets, torch.Generator())


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="matrices"):
        frechet_distance(torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(UserError, match="two samples"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))
