"""The comparison on the toy: amortised gradients and their rivals at small counts."""

from __future__ import annotations

import functools

import pytest
import torch

from lightning_alws.low_rank import LowRankRidge
from lightning_alws.metrics.gradient_toy import (
    AMORTISED,
    RIVALS,
    Counts,
    amortised_errors,
    representative,
    rival_errors,
)
from lightning_alws.models.softplus_toy import SoftplusGenerator
from lightning_alws.quantile_kernel import QuantileKernel
from lightning_alws.regression import freeze

COUNTS = Counts(observations=12, held_out=50, repeats=6, rival_repeats=4, fit_steps=150)


@pytest.fixture(scope="module")
def rivals() -> dict[float, dict]:
    """Errors of the rivals at 0 and 45 degrees."""
    errors = {}
    for angle in (0.0, 45.0):
        torch.manual_seed(0)
        model = SoftplusGenerator(1.0, angle, 0.3).double()
        errors[angle] = rival_errors(model, representative(model, 12), 2000, COUNTS)
    return errors


def test_representative_observations_are_quantiles() -> None:
    model = SoftplusGenerator(1.0, 45.0, 0.3).double()
    x = representative(model, 10)
    fine = torch.linspace(-4, 6, 2001, dtype=torch.float64)
    density = model.log_marginal(fine[:, None]).detach().exp()
    below = torch.stack([density[fine < value].sum() * float(fine[1] - fine[0]) for value in x[:, 0]])
    torch.testing.assert_close(below, (torch.arange(10, dtype=torch.float64) + 0.5) / 10, rtol=0, atol=0.05)


@pytest.mark.slow
def test_rivals_are_biased_by_what_a_mean_field_posterior_leaves_out(rivals) -> None:
    assert set(rivals[45.0]) == set(RIVALS)
    at_45 = {name: error.bias for name, error in rivals[45.0].items()}
    assert 0.15 < at_45["vae"] < 0.3
    assert at_45["rws_1"] > at_45["vae"]
    assert at_45["vae"] > 4 * at_45["iwae_10"]
    assert at_45["rws_1"] > 4 * at_45["rws_10"]
    assert max(at_45["iwae_100"], at_45["rws_100"]) < 0.02
    assert rivals[0.0]["vae"].bias < 0.04  # there the posterior factorises and is nearly Gaussian


@pytest.mark.slow
def test_amortised_errors_beat_the_vae_at_equal_evaluations(rivals) -> None:
    torch.manual_seed(0)
    model = SoftplusGenerator(1.0, 45.0, 0.3).double()
    regression = functools.partial(LowRankRidge, kernel=QuantileKernel, ridge=1.0)((1,)).double()
    freeze(regression)
    errors = amortised_errors(model, regression, representative(model, 12), 2000, COUNTS)
    assert set(errors) == set(AMORTISED)
    for error in errors.values():
        assert error.rms < 0.15
        assert error.bias < rivals[45.0]["vae"].bias / 2
