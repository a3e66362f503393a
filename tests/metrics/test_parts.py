"""Sparsity and spread of features whose values can be said beforehand."""

from __future__ import annotations

import torch

from lightning_alws.metrics.parts import hoyer_sparsity, spread


def test_hoyer_sparsity_of_one_entry_of_all_alike_and_of_half() -> None:
    features = torch.zeros(3, 16, dtype=torch.float64)
    features[0, 3] = -2.0
    features[1] = 0.7
    features[2, :4] = 1.0
    expected = torch.tensor([1.0, 0.0, (4 - 4 / 2) / 3], dtype=torch.float64)
    torch.testing.assert_close(hoyer_sparsity(features), expected)
    torch.testing.assert_close(hoyer_sparsity(5 * features), expected)


def test_spread_is_the_distance_from_the_centre_whatever_the_place_and_the_scale() -> None:
    features = torch.zeros(3, 7, 9, dtype=torch.float64)
    features[0, 2, 5] = 3.0
    features[1, 1, 4] = features[1, 5, 4] = 0.2  # two pixels, four apart
    features[2, 0, 0] = features[2, 0, 8] = features[2, 6, 0] = features[2, 6, 8] = 1.0
    expected = torch.tensor([0.0, 2.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(spread(features), expected)
