"""The particle filter against the Kalman filter."""

from __future__ import annotations

import torch

from lightning_alws.metrics.particle_filter import log_likelihood
from lightning_alws.models.linear_dynamics import LinearDynamics


def test_likelihood_is_the_kalman_filters() -> None:
    model = LinearDynamics((6, 2), 2)
    x = model.sleep(4).x
    estimate = torch.stack([log_likelihood(model, x, 20_000) for _ in range(3)]).mean(0)
    torch.testing.assert_close(estimate.double(), model.log_marginal(x), rtol=0, atol=0.05)
