"""How the C library's malloc serves what stages need again in every micro-batch.

By default glibc gives freed memory back to the kernel, which clears it anew for each micro-batch:
the gradient of BERT's vocabulary then takes ten times as long, or does not, as the heap happens to
lie. So what is freed is kept for the next micro-batch. The peak of what is in use stays the same.

What is resident does not: with holes in the heap it was 1.2 to 1.9 times what was in use, in steps
of BERT, GPT-2, a U-Net and a ResNet. Where a device has no memory for that, blocks of 256 KiB and
more are the kernel's own, which have no holes, and cost their clearing each time.
"""

import ctypes
import os
import sys
from typing import Any

__all__: list[str] = ["HOLES", "free_bytes_of_heap", "keep_freed", "return_freed"]

HOLES = 2.5
"""Resident bytes for each that a peak predicts, at the most, where what is freed is kept."""

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Numbers of `mallopt(3)`, from glibc's malloc.h."""

OWN = ("MALLOC_", "GLIBC_TUNABLES")
"""Who sets one of these variables has chosen for himself."""

KEPT_BYTES = 2**30
LARGEST_MMAP_THRESHOLD = 2**25
"""The most that glibc accepts: half a heap of a thread."""

SMALL_MMAP_THRESHOLD = 2**18


def keep_freed() -> bool:
    """Have malloc keep what is freed, a gigabyte at most, in one heap for all threads.

    Returns:
        Whether it does: not where the environment sets malloc up, nor without glibc.
    """
    libc = _set(LARGEST_MMAP_THRESHOLD, KEPT_BYTES)
    while libc is not None and _fillings:
        libc.free(ctypes.c_void_p(_fillings.pop()))
    return libc is not None


def return_freed() -> bool:
    """Have malloc return blocks of 256 KiB and more to the kernel at once.

    Malloc would still serve them from free parts of the heap, which stay resident when they are
    free again. So these are given back now, and what fills them is never touched.

    Returns:
        Whether it does: as `keep_freed`, and not before glibc 2.33.
    """
    libc = _set(SMALL_MMAP_THRESHOLD, SMALL_MMAP_THRESHOLD)
    if libc is None or not hasattr(libc, "mallinfo2"):
        return False
    libc.malloc.restype, libc.mallinfo2.restype = ctypes.c_void_p, _Mallinfo
    libc.malloc_trim(0)
    size = 1 << libc.mallinfo2().free_bytes.bit_length()
    while size >= SMALL_MMAP_THRESHOLD:
        mapped = libc.mallinfo2().mapped_blocks
        block = libc.malloc(ctypes.c_size_t(size))
        if libc.mallinfo2().mapped_blocks == mapped and block:
            _fillings.append(block)
        else:  # no free part of the heap is as large
            libc.free(ctypes.c_void_p(block))
            size //= 2
    return True


def free_bytes_of_heap() -> int:
    """What malloc has from the kernel and would serve next; 0 where it does not say."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is None or not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _Mallinfo
    return int(libc.mallinfo2().free_bytes)


_fillings: list[int] = []
"""Addresses of what fills the free parts of the heap."""


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2`; here are the names of what is read."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "mapped_blocks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "free_bytes",
            "keepcost",
        )
    )


def _set(mmap_threshold: int, trim_threshold: int) -> Any:
    """The C library, set up; None where that is not for us to do."""
    if not sys.platform.startswith("linux") or any(name.startswith(OWN) for name in os.environ):
        return None
    libc = ctypes.CDLL(None)
    chosen = {
        ARENA_MAX: 1,  # a thread's own heaps are unmapped as soon as they are empty
        MMAP_THRESHOLD: mmap_threshold,
        TRIM_THRESHOLD: trim_threshold,
    }
    if not hasattr(libc, "mallopt") or not all(libc.mallopt(*pair) for pair in chosen.items()):
        return None
    return libc
