"""Settings of the C library's malloc for memory that stages need again in every micro-batch.

By default glibc returns freed memory to the kernel, which clears it again for each micro-batch. The
gradient of BERT's vocabulary then takes up to ten times as long; how long depends on how the heap
happens to lie. So freed memory is kept for the next micro-batch. The peak of memory in use stays
the same.

The peak of resident memory does not: with holes in the heap it is 1.1 to 1.7 times the memory in
use, and much of that arises within one action. `runtime/memory/call_memory.py` holds it against the
limits. Where keeping does not fit, blocks of 256 KiB and more are mapped by the kernel: they leave
no holes, and are cleared each time.
"""

import ctypes
import os
import sys
from typing import Any, NamedTuple

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Numbers of `mallopt(3)`, from glibc's malloc.h."""

USER_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES")
"""A user who sets one of these environment variables has set malloc up already."""

KEPT_BYTES = 2**30
LARGEST_MMAP_THRESHOLD = 2**25
"""The largest that glibc accepts: half of a thread's heap."""

SMALL_MMAP_THRESHOLD = 2**18


class HeapUsage(NamedTuple):
    """Bytes of the heap: given out, and free."""

    used_bytes: int
    free_bytes: int


def keep_freed() -> bool:
    """Have malloc keep freed memory, at most a gigabyte, in one heap for all threads.

    Returns:
        Whether it does: not where the environment sets malloc up, nor without glibc.
    """
    libc = _configure(LARGEST_MMAP_THRESHOLD, KEPT_BYTES)
    while libc is not None and _fillings:
        libc.free(ctypes.c_void_p(_fillings.pop()[0]))
    return libc is not None


def return_freed() -> bool:
    """Have malloc return blocks of 256 KiB and more to the kernel at once.

    Malloc would still serve them from free parts of the heap, which then stay resident. So the free
    parts are returned now, and filled with blocks that are never touched.

    Returns:
        Whether it does: as `keep_freed`, and not before glibc 2.33.
    """
    libc, usage = _configure(SMALL_MMAP_THRESHOLD, SMALL_MMAP_THRESHOLD), heap_usage()
    if libc is None or usage is None:
        return False
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc_trim(0)
    size = 1 << usage.free_bytes.bit_length()
    while size >= SMALL_MMAP_THRESHOLD:
        before = _mallinfo()
        block = libc.malloc(ctypes.c_size_t(size))
        after = _mallinfo()
        is_from_kernel = (before.hblks, before.arena) != (after.hblks, after.arena)
        if block and not is_from_kernel:
            _fillings.append((block, size))
        else:  # no free part of the heap is as large
            libc.free(ctypes.c_void_p(block))
            size //= 2
    return True


_fillings: list[tuple[int, int]] = []
"""Addresses and sizes of the blocks that fill the free parts of the heap."""


def is_returned() -> bool:
    """Whether `return_freed` has filled the heap, and `keep_freed` has not come since."""
    return bool(_fillings)


def return_free_pages() -> None:
    """Give the kernel the free pages of the heap; malloc gets them back when it needs them."""
    libc = _libc()
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def heap_usage() -> HeapUsage | None:
    """Malloc's own account of its heap; None without glibc and before glibc 2.33."""
    found = _mallinfo()
    if found is None:
        return None
    filled = sum(size for _, size in _fillings)  # which nobody uses
    return HeapUsage(int(found.uordblks + found.hblkhd) - filled, int(found.fordblks) + filled)


MALLINFO_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2`: `uordblks` and `fordblks` lie in the heap, `hblkhd` is mapped."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in MALLINFO_FIELDS.split())


def _mallinfo() -> Any:
    libc = _libc()
    if libc is None or not hasattr(libc, "mallinfo2"):
        return None
    libc.mallinfo2.restype = _Mallinfo
    return libc.mallinfo2()


def _configure(mmap_threshold: int, trim_threshold: int) -> Any:
    """Set malloc up and return the C library; None where malloc is the user's or not glibc's."""
    is_set_up = any(name.startswith(USER_SETTINGS) for name in os.environ)
    libc = None if is_set_up else _libc()
    # One arena: a thread's own heaps are unmapped as soon as they are empty.
    settings = (ARENA_MAX, 1), (MMAP_THRESHOLD, mmap_threshold), (TRIM_THRESHOLD, trim_threshold)
    if libc is None or not hasattr(libc, "mallopt"):
        return None
    return libc if all(libc.mallopt(*pair) for pair in settings) else None


def _libc() -> Any:
    """The C library; None where it is not Linux's."""
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None
