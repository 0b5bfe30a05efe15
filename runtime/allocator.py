"""How the C library's malloc serves what stages need again in every micro-batch.

By default glibc gives freed memory back to the kernel, which clears it anew for each micro-batch:
the gradient of BERT's vocabulary then takes ten times as long, or does not, as the heap happens to
lie. So what is freed is kept for the next micro-batch. The peak of what is in use stays the same.

What is resident does not: with holes in the heap it was 1.2 to 1.9 times what was in use, in steps
of BERT, GPT-2, a U-Net and a ResNet. Where a device has no memory for that, blocks of a megabyte
and more are the kernel's own, which have no holes, and cost their clearing each time.
"""

import ctypes
import os
import sys

__all__: list[str] = ["HOLES", "keep_freed", "return_freed"]

HOLES = 2.0
"""Resident bytes for each that is in use, at the most, where freed memory is kept."""

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Numbers of `mallopt(3)`, from glibc's malloc.h."""

OWN = ("MALLOC_", "GLIBC_TUNABLES")
"""Who sets one of these variables has chosen for himself."""

KEPT_BYTES = 2**30
LARGEST_MMAP_THRESHOLD = 2**25
"""The most that glibc accepts: half a heap of a thread."""


SMALL_MMAP_THRESHOLD = 2**20


def keep_freed() -> bool:
    """Have malloc keep what is freed, a gigabyte at most, in one heap for all threads.

    Returns:
        Whether it does: not where the environment sets malloc up, nor without glibc.
    """
    return _set(LARGEST_MMAP_THRESHOLD, KEPT_BYTES)


def return_freed() -> bool:
    """Have malloc return large blocks to the kernel at once, and now what is free.

    Returns:
        Whether it does, as `keep_freed`.
    """
    done = _set(SMALL_MMAP_THRESHOLD, SMALL_MMAP_THRESHOLD)
    if done:
        ctypes.CDLL(None).malloc_trim(0)
    return done


def _set(mmap_threshold: int, trim_threshold: int) -> bool:
    if not sys.platform.startswith("linux") or any(name.startswith(OWN) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    chosen = {
        ARENA_MAX: 1,  # a thread's own heaps are unmapped as soon as they are empty
        MMAP_THRESHOLD: mmap_threshold,
        TRIM_THRESHOLD: trim_threshold,
    }
    return all(mallopt(what, value) == 1 for what, value in chosen.items())
