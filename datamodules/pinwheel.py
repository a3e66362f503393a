"""The pinwheel: curved arms around a centre, the standard test of clusters that are no Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datamodules.arrays import ArrayDataModule
from datamodules.loader import require_positive
from lightning_alws.errors import UserError
from lightning_alws.noise import generator


def pinwheel(
    arm: Tensor,
    arms: int = 5,
    radial_scale: float = 0.3,
    tangential_scale: float = 0.1,
    twist: float = 0.2,
    source: torch.Generator | None = None,
) -> Tensor:
    """One draw from each of the arms given, shape (n, 2), float64.

        (r, t) = (1 + radial_scale ε₁, tangential_scale ε₂),   a = 2π arm/arms + twist eʳ,   x = (r, t) R(a)

    with R(a) = [cos a, −sin a; sin a, cos a]. Turned by 2π/arms, one arm is the next; the mean over arms is 0.

    Args:
        arm: 0..arms − 1, (n,), int64.
        arms: number of arms.
        radial_scale: standard deviation along an arm, whose middle is at distance 1.
        tangential_scale: across an arm.
        twist: in radians; 0 gives arms that are straight, and Gaussian.
        source: of the noise; torch's global generator without one.
    """
    noise = torch.randn(len(arm), 2, generator=source, dtype=torch.float64)
    radial, tangential = 1 + radial_scale * noise[:, 0], tangential_scale * noise[:, 1]
    angle = 2 * math.pi * arm.double() / arms + twist * radial.exp()
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([radial * cosine + tangential * sine, -radial * sine + tangential * cosine], dim=1)


class Pinwheel(ArrayDataModule):
    """Points of a pinwheel, (n, 2), less the mean of the training set: its centre is near 0.

    As published (kevin-w-li/al-ws, after M. Johnson's), the training set has equally many points of each arm. In the
    other sets each point's arm is drawn, as a model draws its components.

    Args:
        batch_size: training points per step and process.
        eval_batch_size: validation, test or prediction points per step and process.
        train_size: training points.
        validation_size: validation points.
        test_size: test points.
        arms: number of arms.
        radial_scale: standard deviation along an arm.
        tangential_scale: standard deviation across an arm.
        twist: of the arms, in radians; 0 gives a mixture of Gaussians.
        seed: of the points and their order.

    Raises UserError for a size below 1, no arm, or a scale that is not positive.
    """

    def __init__(
        self,
        batch_size: int = 100,
        eval_batch_size: int = 500,
        train_size: int = 2500,
        validation_size: int = 1000,
        test_size: int = 2000,
        arms: int = 5,
        radial_scale: float = 0.3,
        tangential_scale: float = 0.1,
        twist: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.save_hyperparameters(logger=False)
        self.sizes_asked = {"train": train_size, "val": validation_size, "test": test_size}
        for name, value in (("train_size", train_size), ("validation_size", validation_size), ("test_size", test_size)):
            require_positive(name, value)
        require_positive("arms", arms)
        for name, scale in (("radial_scale", radial_scale), ("tangential_scale", tangential_scale)):
            if not 0 < scale < math.inf:
                raise UserError(f"data.{name} is {scale}; give a positive number.")
        self.arms, self.radial_scale, self.tangential_scale, self.twist = arms, radial_scale, tangential_scale, twist

    @property
    def event_shape(self) -> tuple[int]:
        """(2,)."""
        return (2,)

    def arm(self, split: str) -> Tensor:
        """The arm of each of a split's points, int64 (n,), on the CPU."""
        count = self.sizes_asked[split]
        if split == "train":
            return torch.arange(count) % self.arms
        return torch.randint(self.arms, (count,), generator=generator(self.seed, "arm", split))

    def fresh(self, count: int, *stream: int | str) -> Tensor:
        """More points of the same law as the test set, float32 (count, 2), on the CPU; seeded by the stream's name."""
        source = generator(self.seed, "fresh", *stream)
        return self._centred(self._points(torch.randint(self.arms, (count,), generator=source), source))

    def read(self) -> dict[str, Tensor]:
        """The points of the three splits."""
        return {
            split: self._centred(self._points(self.arm(split), generator(self.seed, "pinwheel", split)))
            for split in self.sizes_asked
        }

    def _points(self, arm: Tensor, source: torch.Generator) -> Tensor:
        return pinwheel(arm, self.arms, self.radial_scale, self.tangential_scale, self.twist, source)

    def _centred(self, points: Tensor) -> Tensor:
        train = self._points(self.arm("train"), generator(self.seed, "pinwheel", "train"))
        return (points - train.mean(0)).float()
