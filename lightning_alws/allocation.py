"""Memory that a step frees is kept for the next one.

The GNU C library gives large blocks back to the system as soon as they are freed, and every step then waits for the
same pages to be mapped and zeroed again: of a pass over an 8 MB tensor that is more than half the time on a CPU.
"""

from __future__ import annotations

import ctypes
import os
import platform

TRIM_THRESHOLD, MAP_THRESHOLD = -1, -3  # mallopt's names for them, in malloc.h
KEPT = 2**30  # bytes: smaller blocks are not mapped each by itself, nor less than this given back from the heap's end
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")


def keep_freed() -> bool:
    """Let the C library keep freed memory for this process, up to 1 GB; returns whether it does from now on.

    Elsewhere than with the GNU C library, and where the environment sets the library's thresholds or loads another
    allocator, nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in VARIABLES):
        return False
    library = ctypes.CDLL(None)
    set_to = [library.mallopt(name, KEPT) == 1 for name in (TRIM_THRESHOLD, MAP_THRESHOLD)]
    return all(set_to)
