"""How the C library's malloc serves what stages need again in every micro-batch.

By default glibc gives freed memory back to the kernel, which clears it anew for each micro-batch:
the gradient of BERT's vocabulary then takes ten times as long, or does not, as the heap happens to
lie. So what is freed is kept for the next micro-batch. The peak of what is in use stays the same.

What is resident does not: with holes in the heap it is up to a third more. Where that comes near
what the process may take, all that is free goes back to the kernel before the next action (`Heap`).
"""

import ctypes
import os
import sys
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__: list[str] = ["Heap", "keep_freed"]

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Numbers of `mallopt(3)`, from glibc's malloc.h."""

OWN = ("MALLOC_", "GLIBC_TUNABLES")
"""Who sets one of these variables has chosen for himself."""

KEPT_BYTES = 2**30
LARGEST_MMAP_THRESHOLD = 2**25
"""The most that glibc accepts: half a heap of a thread."""

MARGIN = 0.05
"""Of a limit, what is kept clear until it is known what actions need."""

STATM = Path("/proc/self/statm")


def keep_freed() -> bool:
    """Have malloc keep what is freed, a gigabyte at most, in one heap for all threads.

    Returns:
        Whether it does: not where the environment sets malloc up, nor without glibc.
    """
    libc = _glibc()
    chosen = {
        ARENA_MAX: 1,  # a thread's own heaps are unmapped as soon as they are empty
        MMAP_THRESHOLD: LARGEST_MMAP_THRESHOLD,
        TRIM_THRESHOLD: KEPT_BYTES,
    }
    return libc is not None and all(libc.mallopt(*pair) for pair in chosen.items())


class Heap:
    """Memory of a process that may take so much and no more.

    Attributes:
        most_bytes: what may be resident, beside what the process has in common with others.
    """

    def __init__(self, limit_bytes: float, libc: Any) -> None:
        """For `within`; whoever makes it calls `settle` before the first action."""
        self.most_bytes = self._limit_bytes = limit_bytes
        self._libc = libc
        self._others_bytes = 0
        self._needs: dict[Hashable, int] = {}
        self._exceeds: dict[Hashable, float] = {}

    @classmethod
    def within(cls, limit_bytes: float) -> "Heap | None":
        """Of this process; None where malloc is not ours to set up, or does not tell enough."""
        libc = _glibc()
        tells = libc is not None and hasattr(libc, "mallinfo2") and STATM.exists()
        return cls(limit_bytes, libc) if tells else None

    def settle(self, held_bytes: float) -> None:
        """From now on the limit counts, with so many bytes that it is for and that are there."""
        self._return()
        limit_bytes = (1 - MARGIN) * self._limit_bytes
        self.most_bytes = _resident_bytes() - held_bytes + limit_bytes

    def room_bytes(self) -> float:
        """What may still become resident; negative where too much is."""
        return self.most_bytes - _resident_bytes()

    @contextmanager
    def room_for(self, kind: Hashable) -> Iterator[None]:
        """Return what is free, if an action of this kind might need more than there is room for.

        It is thought to need what one of its kind has at the most, of which it finds what lies free
        in the heap; and where that was not all true, what was too much then. Nothing is known of
        the first one. What other threads allocate meanwhile counts as well.
        """
        before = _resident_bytes()
        more = max(0, self._needs.get(kind, 0) - self._free_bytes(before))
        if before + more + self._exceeds.get(kind, 0.0) > self.most_bytes:
            self._return()
            before = _resident_bytes()
        yield
        after = _resident_bytes()
        self._needs[kind] = max(self._needs.get(kind, 0), after - before)
        self._exceeds[kind] = max(self._exceeds.get(kind, 0.0), after - self.most_bytes)

    def _return(self) -> None:
        """Give back all that is free; what is then resident and not malloc's is of others."""
        self._libc.malloc_trim(0)
        self._others_bytes = _resident_bytes() - self._used_bytes()

    def _free_bytes(self, resident_bytes: int) -> int:
        """What lies free in the heap and is resident."""
        return max(0, resident_bytes - self._others_bytes - self._used_bytes())

    def _used_bytes(self) -> int:
        """What malloc has given out."""
        said = self._libc.mallinfo2()
        return int(said.used_bytes + said.mapped_bytes)


def _resident_bytes() -> int:
    """Of memory that is the process's alone, no file's."""
    _, resident, shared, *_ = STATM.read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2`; here are the names of what is read."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "mapped_bytes"),
            *("usmblks", "fsmblks", "used_bytes", "fordblks", "keepcost"),
        )
    )


def _glibc() -> Any:
    """The C library, where it is glibc, and ours to set up."""
    if not sys.platform.startswith("linux") or any(name.startswith(OWN) for name in os.environ):
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return None
    if hasattr(libc, "mallinfo2"):  # since 2.33
        libc.mallinfo2.restype = _Mallinfo
    return libc
