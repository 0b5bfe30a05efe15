"""Settings of the C library's malloc for memory that stages need again in every micro-batch.

By default glibc returns freed memory to the kernel, which clears it again for each micro-batch. The
gradient of BERT's vocabulary then takes up to ten times as long; how long depends on how the heap
happens to lie. So freed memory is kept for the next micro-batch. The peak of memory in use stays
the same.

The peak of resident memory does not. With holes in the heap it was 1.2 to 1.9 times the memory in
use, in steps of BERT, GPT-2, a U-Net and a ResNet. Where a device has no memory for that, blocks of
256 KiB and more are mapped by the kernel: they leave no holes, and are cleared each time.
"""

import ctypes
import os
import sys
from typing import Any

HOLES = 2.5
"""Largest ratio of resident memory to a predicted peak where freed memory is kept."""

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Numbers of `mallopt(3)`, from glibc's malloc.h."""

USER_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES")
"""A user who sets one of these environment variables has set malloc up already."""

KEPT_BYTES = 2**30
LARGEST_MMAP_THRESHOLD = 2**25
"""The largest that glibc accepts: half of a thread's heap."""

SMALL_MMAP_THRESHOLD = 2**18


def keep_freed() -> bool:
    """Have malloc keep freed memory, at most a gigabyte, in one heap for all threads.

    Returns:
        Whether it does: not where the environment sets malloc up, nor without glibc.
    """
    libc = _configure(LARGEST_MMAP_THRESHOLD, KEPT_BYTES)
    while libc is not None and _fillings:
        libc.free(ctypes.c_void_p(_fillings.pop()))
    return libc is not None


def return_freed() -> bool:
    """Have malloc return blocks of 256 KiB and more to the kernel at once.

    Malloc would still serve them from free parts of the heap, which then stay resident. So the free
    parts are returned now, and filled with blocks that are never touched.

    Returns:
        Whether it does: as `keep_freed`, and not before glibc 2.33.
    """
    libc = _configure(SMALL_MMAP_THRESHOLD, SMALL_MMAP_THRESHOLD)
    if libc is None or _usage() is None:
        return False
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc_trim(0)
    size = 1 << free_bytes_of_heap().bit_length()
    while size >= SMALL_MMAP_THRESHOLD:
        before = _usage()
        block = libc.malloc(ctypes.c_size_t(size))
        after = _usage()
        is_from_kernel = (before.mapped_blocks, before.arena) != (after.mapped_blocks, after.arena)
        if block and not is_from_kernel:
            _fillings.append(block)
        else:  # no free part of the heap is as large
            libc.free(ctypes.c_void_p(block))
            size //= 2
    return True


def free_bytes_of_heap() -> int:
    """Bytes that malloc has from the kernel and has not given out; 0 where it does not say."""
    usage = _usage()
    return 0 if usage is None else int(usage.free_bytes)


_fillings: list[int] = []
"""Addresses of the blocks that fill the free parts of the heap."""


MALLINFO_FIELDS = (
    "arena ordblks smblks mapped_blocks hblkhd usmblks fsmblks uordblks free_bytes keepcost"
)


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2`; the fields that are read here have plain names."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO_FIELDS.split())


def _usage() -> Any:
    """Malloc's own account of its heap; None without glibc and before glibc 2.33."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is None or not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _Mallinfo
    return libc.mallinfo2()


def _configure(mmap_threshold: int, trim_threshold: int) -> Any:
    """Set malloc up and return the C library; None where malloc is the user's or not glibc's."""
    is_set_up = any(name.startswith(USER_SETTINGS) for name in os.environ)
    if is_set_up or not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    # One arena: a thread's own heaps are unmapped as soon as they are empty.
    settings = (ARENA_MAX, 1), (MMAP_THRESHOLD, mmap_threshold), (TRIM_THRESHOLD, trim_threshold)
    if not hasattr(libc, "mallopt") or not all(libc.mallopt(*pair) for pair in settings):
        return None
    return libc
