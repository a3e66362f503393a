"""Freed memory is kept: what is allocated over and over is mapped once."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from lightning_alws.allocation import keep_freed
if sys.argv[1] == "kept":
    print(keep_freed())
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(12):
    before = faults()
    blocks = [b"x" * 30_000_000 for _ in range(4)]
    del blocks
print(faults() - before)
"""


def last_round(mode: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", FAULTS, mode]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_no_page_is_mapped_twice() -> None:
    assert int(last_round("given back")[0]) > 1000
    kept, faults = last_round("kept")
    assert kept == "True"
    assert int(faults) < 100


def test_what_the_environment_says_stays() -> None:
    kept, faults = last_round("kept", MALLOC_TRIM_THRESHOLD_="100000", MALLOC_MMAP_THRESHOLD_="100000")
    assert kept == "False"
    if platform.libc_ver()[0] == "glibc":
        assert int(faults) > 1000
