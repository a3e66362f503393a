"""Counts of a population at regular times: Nicholson's blowflies, one's own series, or simulated ones."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import torch
from torch import Tensor

from datamodules.idx import ROOT_VARIABLE, default_root
from datamodules.series import ObservedSeries, check_even, read_columns
from lightning_alws.errors import UserError, check_at_least
from lightning_alws.files import atomic_write
from lightning_alws.noise import generator
from lightning_alws.population import Population

FILE = "blowfly.csv"
LENGTH = 180
DAYS = 2  # between two counts
ADDRESS = "https://raw.githubusercontent.com/wittawatj/k2abc/master/code/blowfly/blowflydata.m"
# Of the 180 counts in decimal, separated by commas: the file around them may change.
CHECKSUM = "ed85be2eb5eb80f38d7229227d4fe294b6ad0c2b68e3d92e67ac87b125af0b38"
BEFORE, BURN_IN = 180.0, 50  # constant past and steps left out of simulated series, as in wittawatj/k2abc


class Blowfly(ObservedSeries):
    """Nicholson's blowflies, 180 counts, one every second day; or the counts in a file of one's own.

    Without a path they are read from ``ROOT/blowfly.csv``, and if there is no such file downloaded from the public
    repository wittawatj/k2abc (MIT, Copyright (c) 2016 Mijung Park, Wittawat Jitkrittum, Dino Sejdinovic) and kept
    there, both by their checksum. Observations are float32 (1, T), in counts.

    Args:
        path: a CSV file with a column ``count``, in counts, at regular times; in days, where it has a column
            ``day_index``, which is looked at for gaps alone.
        root: folder of all data sets; by default $ALWS_DATA, else ``data``.
        download: fetch the counts where they are missing.
        seed: of the order.

    Raises:
        UserError: a file is missing, a count is missing, not finite or not positive, or the days are uneven.
    """

    def __init__(self, path: str | None = None, root: str | None = None, download: bool = True, seed: int = 0) -> None:
        super().__init__(seed)
        self.save_hyperparameters(logger=False)
        self.own = path is not None
        self.path = Path(path).expanduser() if path is not None else Path(root or default_root()).expanduser() / FILE
        self.download = download

    @property
    def event_shape(self) -> tuple[int, ...]:
        return tuple(self._counts.shape) if self.own else (LENGTH,)

    def prepare_data(self) -> None:
        """Download what is missing."""
        if self.own or self.path.is_file():
            return
        if not self.download:
            raise self._absent("set data.download to true where there is a network")
        counts = download_counts()
        rows = [f"{DAYS * (row + 1)},{count}\n" for row, count in enumerate(counts)]
        try:
            with atomic_write(self.path, "w") as file:
                file.writelines(["day_index,count\n", *rows])
        except OSError as error:
            raise self._absent(f"choose a folder that can be written ({error.strerror})") from error

    def series(self) -> Tensor:
        """The counts, float32 (1, T)."""
        if not self.own and not self.path.is_file():
            raise self._absent("let data.prepare_data() download it")
        if not self.own and len(self._counts) != LENGTH:
            raise UserError(
                f"{self.path} holds {len(self._counts)} counts, but Nicholson's blowflies are {LENGTH}; delete it to "
                "download it again, or give a file of your own as data.path."
            )
        if not self.own and checksum(self._counts.tolist()) != CHECKSUM:
            raise UserError(
                f"{self.path} holds {LENGTH} counts, but not Nicholson's (another checksum); delete it to download it "
                "again, or give it as data.path."
            )
        return self._counts[None].float()

    @functools.cached_property
    def _counts(self) -> Tensor:
        """The column of counts, checked, float64 (T,)."""
        argument = "data.path" if self.own else "the file of counts"
        columns = read_columns(self.path, ["count"], argument, optional=["day_index"])
        if "day_index" in columns:
            check_even(self.path, columns["day_index"], "days", argument)
        counts = columns["count"]
        if (counts <= 0).any():
            row = int((counts <= 0).nonzero()[0])
            raise UserError(
                f"{self.path} has a count of {counts[row]:g} in row {row + 1}, which has no logarithm; replace counts "
                "that are not positive, by 0.5 for none seen, or choose another series."
            )
        return counts

    def _absent(self, remedy: str) -> UserError:
        return UserError(
            f"there is no file {self.path} with the counts; set data.root, or {ROOT_VARIABLE} in the environment, to "
            f"the folder that holds {FILE}, or {remedy}."
        )


def download_counts() -> list[int]:
    """Nicholson's 180 counts from their public source, checked.

    Raises:
        UserError: no network, or what came is not the counts.
    """
    try:
        with urlopen(ADDRESS, timeout=60) as answer:
            text = answer.read().decode("utf-8", errors="replace")
    except (URLError, OSError) as error:
        raise UserError(
            f"the counts could not be downloaded from {ADDRESS} ({error}); give a CSV file of them as data.path, or "
            f"set {ROOT_VARIABLE} in the environment to a folder that holds {FILE}."
        ) from error
    return parse_counts(text)


def parse_counts(text: str) -> list[int]:
    """The 180 counts in a MATLAB file, in columns beside their days or alone.

    Raises:
        UserError: no such arrangement has the counts' checksum.
    """
    code = re.sub(r"%.*", "", text)
    numbers = [int(float(number)) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:[eE]\+?\d+)?", code)]
    for candidate in (numbers, numbers[1::2], numbers[::2], numbers[LENGTH:], numbers[:LENGTH]):
        if len(candidate) == LENGTH and checksum(candidate) == CHECKSUM:
            return candidate
    raise UserError(
        f"what was downloaded from {ADDRESS} is not the {LENGTH} counts: of its {len(numbers)} numbers none in order "
        "have their checksum; give a CSV file of them as data.path."
    )


def checksum(counts: Sequence[float]) -> str:
    """The SHA-256 of counts in decimal, separated by commas."""
    return hashlib.sha256(",".join(f"{count:.15g}" for count in counts).encode()).hexdigest()


class BlowflySimulated(ObservedSeries):
    """A series simulated at known parameters: 50 steps after a constant past of 180 counts, all drawn from the seed.

    Args:
        length: T.
        lag: τ in sampling intervals.
        truth: the other parameters.
        seed: of the series.

    Attributes:
        truth: as given.
        lag: as given.

    Raises:
        UserError: the lag is not shorter than the series, or a parameter is not positive.
    """

    def __init__(
        self,
        length: int = LENGTH,
        lag: int = 7,
        truth: Population = Population(20.0, 300.0, 0.3, 0.3, 0.4, 0.1),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.save_hyperparameters(logger=False)
        check_at_least("data", length=(length, 2), lag=(lag, 1))
        if lag >= length:
            raise UserError(f"data.lag is {lag}, for a series of data.length {length}; give a lag less than that.")
        truth.check("data.truth")
        self.length, self.lag, self.truth = length, lag, truth

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.length,)

    def series(self) -> Tensor:
        """The counts, float32 (1, T): the equations of lightning_alws/models/blowfly.py, one step after the other."""
        p, draws = self.truth, generator(self.seed, "blowfly")
        counts = [BEFORE] * self.lag
        for _ in range(BURN_IN + self.length):
            births = p.births * counts[-self.lag] * math.exp(-counts[-self.lag] / p.capacity)
            births *= gamma_draw(p.birth_noise, draws)
            survivors = counts[-1] * math.exp(-p.mortality * gamma_draw(p.survival_noise, draws))
            noise = p.observation_noise * float(torch.randn((), generator=draws))
            counts.append(max(births + survivors, 1e-6) * math.exp(noise))
        return torch.tensor(counts[-self.length :])[None]


def gamma_draw(scale: float, draws: torch.Generator) -> float:
    """One draw of the gamma distribution of mean 1 and the given standard deviation."""
    concentration = torch.tensor(scale**-2, dtype=torch.float64)
    return float(torch._standard_gamma(concentration, generator=draws) / concentration)
