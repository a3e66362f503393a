"""The curved posteriors: their log-joint against its definition, their gradient against a grid."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.distributions import Normal

from lightning_alws.contract import check_model
from lightning_alws.errors import UserError
from lightning_alws.models.curved import Curve, CurvedGenerator

VALUES = {
    "ring": lambda z: z.norm(dim=1),
    "banana": lambda z: z[:, 1] + z[:, 0] ** 2,
    "product": lambda z: z.prod(dim=1),
}


@pytest.mark.parametrize("curve", get_args(Curve))
def test_log_joint_is_its_definition(curve: Curve) -> None:
    model = CurvedGenerator(curve, slope=0.7, noise_scale=0.5).double()
    check_model(model, False)
    sleep = model.sleep(11)
    reference = Normal(0.7 * VALUES[curve](sleep.z), 0.5).log_prob(sleep.x[:, 0]) + Normal(0, 1).log_prob(sleep.z).sum(
        1
    )
    ours = model.likelihood(sleep.z).log_prob(sleep.x) + model.log_prior(sleep.z)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


def test_unknown_curve_is_named() -> None:
    with pytest.raises(UserError, match="curve is spiral; give one of ring, banana, product"):
        CurvedGenerator("spiral")  # type: ignore[arg-type]
