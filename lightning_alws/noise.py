"""Counter-based noise: the seed of every draw follows from (seed, stream, rank, index).

A run that is cut and resumed, or spread over several processes, then draws what it should without any stored
generator state, and no two ranks draw the same noise.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def global_seed() -> int:
    """The seed given to ``seed_everything`` (0 if there was none)."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def mix_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part; neighbouring parts give unrelated seeds.

    A hash is used because torch's CPU generator reads only the low 32 bits, so that sums or shifts of
    (seed, rank, step) would collide.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`mix_seed` of the parts."""
    return torch.Generator().manual_seed(mix_seed(*parts))


def reseed(*parts: int | str) -> None:
    """Let all global generators (torch's on every device, NumPy's, Python's) go on from a seed made of the parts."""
    seed = mix_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (a user's code draws from it)
    random.seed(seed)


@contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Every draw inside the block, on CPU and ``device``, is seeded by the parts; the state outside is untouched.

    Reseeding the global generators, rather than passing a generator along, also covers ``torch.distributions`` and
    the draws of a user's own model.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(mix_seed(*parts))
        yield
