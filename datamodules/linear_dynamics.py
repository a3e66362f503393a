"""Many short series of a linear-Gaussian state space model with known parameters, or a user's series cut into pieces.

z_1 ~ N(m, s² I),   z_t ~ N(A z_{t−1}, q² I),   x_t ~ N(C z_t, diag r²)
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from datamodules.arrays import ArrayDataModule
from datamodules.series import named_columns, read_columns, standard_scale
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.noise import generator

# A turns by a twelfth of a circle a step and shrinks; the other numbers make signal and noise alike in size.
TURN, DECAY = math.pi / 6, 0.9
INITIAL_MEAN, INITIAL_SCALE, PROCESS_SCALE = 1.5, 0.7, 0.4
NOISE_SCALES = (0.3, 0.6)  # r_d is uniform between them; the entries of C are standard normal


class LinearDynamicsData(ArrayDataModule):
    """Series (steps, D_x) from the seed, D_z = 2; or, with a path, pieces of the columns of a CSV file.

    A file's first line names its columns; each line is one point in time, at equal intervals, in any units. The series
    is cut into pieces of ``steps`` points, the first ones for training and the last ones for the test; each column
    is brought to mean 0 and standard deviation 1 over the training pieces, in which units the likelihood is.

    Args:
        steps: T, points in time of one series or piece.
        observed_dim: D_x of the series drawn.
        train_size: series drawn for training.
        validation_size: series drawn, or pieces cut, for validation.
        test_size: series drawn, or pieces cut, for the test.
        batch_size: training series per step and process.
        eval_batch_size: validation, test or prediction series per step and process.
        path: a CSV file, instead of series drawn from the seed.
        columns: the names of its columns that are x.
        seed: of the parameters, the data and the order.

    Raises:
        UserError: a number makes no sense, or the file cannot be used.
    """

    def __init__(
        self,
        steps: int = 15,
        observed_dim: int = 3,
        train_size: int = 1000,
        validation_size: int = 200,
        test_size: int = 1000,
        batch_size: int = 200,
        eval_batch_size: int = 1000,
        path: str | None = None,
        columns: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        self.save_hyperparameters(logger=False)
        check_at_least(
            "data",
            steps=(steps, 2),
            observed_dim=(observed_dim, 1),
            train_size=(train_size, 1),
            validation_size=(validation_size, 1),
            test_size=(test_size, 1),
        )
        self.steps, self.path, self.columns = steps, path, named_columns(path, columns)
        self.observed_dim = len(self.columns) if path else observed_dim
        self.split_sizes = {"train": train_size, "val": validation_size, "test": test_size}

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.steps, self.observed_dim)

    @functools.cached_property
    def truth(self) -> dict[str, Tensor] | None:
        """The parameters in float64 (``dynamics`` A, ``loadings`` C, ``initial_mean`` m, and the standard deviations
        ``initial_scale``, ``process_scale`` (2,), ``observation_scale`` (D_x,)); None for a user's series.
        """
        if self.path:
            return None
        draws = generator(self.seed, "parameters")
        cosine, sine = DECAY * math.cos(TURN), DECAY * math.sin(TURN)
        least, greatest = NOISE_SCALES
        loadings = torch.randn(self.observed_dim, 2, generator=draws, dtype=torch.float64)
        noise = torch.rand(self.observed_dim, generator=draws, dtype=torch.float64)
        return {
            "dynamics": torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64),
            "loadings": loadings,
            "initial_mean": torch.tensor([INITIAL_MEAN, 0.0], dtype=torch.float64),
            "initial_scale": torch.full((2,), INITIAL_SCALE, dtype=torch.float64),
            "process_scale": torch.full((2,), PROCESS_SCALE, dtype=torch.float64),
            "observation_scale": least + (greatest - least) * noise,
        }

    def read(self) -> dict[str, Tensor]:
        """Each split drawn from a stream of its own, or cut from the file."""
        if self.path:
            return self._cut(Path(self.path))
        return {split: self._draw(split, size) for split, size in self.split_sizes.items()}

    def _draw(self, split: str, size: int) -> Tensor:
        truth = self.truth
        assert truth is not None
        draws = generator(self.seed, "data", split)
        z = truth["initial_mean"] + truth["initial_scale"] * torch.randn(size, 2, generator=draws).double()
        states = [z]
        for _ in range(self.steps - 1):
            z = z @ truth["dynamics"].T + truth["process_scale"] * torch.randn(size, 2, generator=draws).double()
            states.append(z)
        x = torch.stack(states, 1) @ truth["loadings"].T
        return (x + truth["observation_scale"] * torch.randn(x.shape, generator=draws).double()).float()

    def _cut(self, path: Path) -> dict[str, Tensor]:
        series = torch.stack([*read_columns(path, self.columns).values()], dim=1)
        pieces = series[: len(series) // self.steps * self.steps].view(-1, self.steps, len(self.columns))
        val, test = self.split_sizes["val"], self.split_sizes["test"]
        if len(pieces) <= val + test:
            raise UserError(
                f"data.path is {path}, whose {len(series)} rows are {len(pieces)} pieces of data.steps {self.steps}, "
                f"of which data.validation_size {val} and data.test_size {test} leave none for training; lower these, "
                "or data.steps."
            )
        train = pieces[: len(pieces) - val - test]
        mean, spread = standard_scale(train.flatten(0, 1), path, self.columns)
        pieces = ((pieces - mean) / spread).float()
        return dict(zip(("train", "val", "test"), pieces.split([len(train), val, test]), strict=True))
