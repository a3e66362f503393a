"""Held parameters: no gradient for them, some for what passes through; released whatever happens."""

from __future__ import annotations

import pytest
import torch
from models import LinearGaussian

from lightning_alws.held import held


def test_gradients_pass_through_to_the_inputs_alone() -> None:
    model, z = LinearGaussian(), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    with held(model):
        model.likelihood(z).log_prob(torch.zeros(3, 3, dtype=torch.float64)).sum().backward()
    assert z.grad is not None
    assert (z.grad != 0).all()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_held_parameters_are_released_after_a_failure() -> None:
    model = LinearGaussian()
    model.bias.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), held(model):
        _ = 1 / 0
    assert model.weight.requires_grad
    assert not model.bias.requires_grad
