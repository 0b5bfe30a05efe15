"""How the C library's malloc serves what stages need again in every micro-batch.

By default glibc gives freed memory back to the kernel, which clears it anew for each micro-batch:
the gradient of BERT's vocabulary then takes ten times as long, or does not, as the heap happens to
lie. So what is freed is kept for the next micro-batch. The peak of what is in use stays the same.
"""

import ctypes
import os
import sys
from functools import cache

__all__: list[str] = ["keep_freed"]

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Numbers of `mallopt(3)`, from glibc's malloc.h."""

OWN = ("MALLOC_", "GLIBC_TUNABLES")
"""Who sets one of these variables has chosen for himself."""

KEPT_BYTES = 2**30
LARGEST_MMAP_THRESHOLD = 2**25
"""The most that glibc accepts: half a heap of a thread."""


@cache
def keep_freed() -> bool:
    """Have malloc keep what is freed, a gigabyte at most, in one heap for all threads.

    Returns:
        Whether it does: not where the environment sets malloc up, nor without glibc.
    """
    if not sys.platform.startswith("linux") or any(name.startswith(OWN) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    chosen = {
        ARENA_MAX: 1,  # a thread's own heaps are unmapped as soon as they are empty
        MMAP_THRESHOLD: LARGEST_MMAP_THRESHOLD,
        TRIM_THRESHOLD: KEPT_BYTES,
    }
    return all(mallopt(what, value) == 1 for what, value in chosen.items())
