"""What a call of a pipeline takes of the CPUs' memory, held against their limits in each action.

    resident  = in use + holes of the heap + what is not in the heap
    of a call = what the model has + growth of what is in use since the call began

What the program holds beside the model when a call begins, such as its data, is not the call's. The
kernel's count is read after each action. Only if it comes near the limit, malloc is asked
what is in use: holes go back to the kernel, and only what is in use can be too much.
"""

import threading
from collections.abc import Callable

from skyfx.runtime.memory.malloc import (
    heap_usage,
    is_returned,
    keep_freed,
    return_free_pages,
    return_freed,
)
from skyfx.runtime.memory.resident import forget_peak, resident

NEAR = 0.9
"""The share of a limit from which holes of the heap go back to the kernel."""

OTHERS_BYTES = 2**23
"""What a call may take beside tensors, for the interpreter and the transport."""

HOLES = 2.5
"""More resident bytes than this for each byte in use were never seen: 1.7 at the most."""

WORTH = 0.02
"""Holes below this share of the limit stay: it takes as long to find small ones as large ones."""


class CallMemory:
    """The account of a call: each device's thread enters it, and looks after each action.

    Calls that run at the same time in one process share the sum of what they may take. Beside a
    call without a limit, the others have none.
    """

    def __init__(self, limit_bytes: int | None = None, held: Callable[[], int] = lambda: 0) -> None:
        """Prepare the account.

        Args:
            limit_bytes: of all CPUs of the pipeline in this process; None for no limit.
            held: what the model takes there, with gradients and optimizer state.
        """
        self._limit_bytes, self._held = limit_bytes, held
        self._room_bytes, self._threads = float("inf"), 0
        self._held_bytes = self._begun = self._known_used = self._resident = 0

    def __enter__(self) -> "CallMemory":
        """The first thread notes what is in use, and returns holes that were left before."""
        with _account.lock:
            if not self._threads and self._limit_bytes is not None:
                self._note(self._limit_bytes)
            self._threads += 1
            _account.running |= {self}
        return self

    def __exit__(self, *raised: object) -> None:
        """With the last thread, the call takes part no more."""
        with _account.lock:
            self._threads -= 1
            if not self._threads:
                _account.running -= {self}

    def check(self) -> None:
        """Look at what is resident now that an action has ended.

        Raises:
            MemoryError: more was in use than the limits allow.
        """
        with _account.lock:
            allowed = self._allowed()
            there = None if allowed is None else resident()
            if allowed is None or there is None:
                return
            before, self._resident = self._resident, there.now_bytes
            besides = self._begun + _account.not_in_heap - self._held_bytes
            if there.peak_bytes - besides <= NEAR * allowed:
                self._known_used = self._begun  # at least
            else:
                brief = there.peak_bytes - max(before, there.now_bytes)
                self._judge(there.peak_bytes - besides, brief, allowed)

    def _note(self, limit_bytes: int) -> None:
        held, heap, there = self._held(), heap_usage(), resident()
        is_alone = not _account.running
        if heap is None or there is None or (is_alone and not forget_peak()):
            return  # this kernel or this C library does not tell enough
        holes = there.now_bytes - heap.used_bytes - _account.not_in_heap
        is_near = held + holes > NEAR * limit_bytes
        if is_near:
            _account.trim()
        self._room_bytes = float(limit_bytes - held)
        self._held_bytes, self._begun = held, heap.used_bytes
        self._known_used, self._resident = heap.used_bytes, there.now_bytes - holes * is_near

    def _allowed(self) -> float | None:
        """The limits of all calls that run, and what is no tensor; None if there is none."""
        others = sum(call._room_bytes for call in _account.running if call is not self)
        allowed = self._room_bytes + others
        return None if allowed == float("inf") else self._held_bytes + allowed + OTHERS_BYTES

    def _judge(self, charged: int, brief: int, allowed: float) -> None:
        """Hold against what is allowed what was in use at the most, or return the holes.

        What was in use within the action nobody counts; it was no less than this says.

        Args:
            charged: the most bytes that were resident for this call, with holes.
            brief: those of them that came and went during the action. Holes go only by `trim`, so
                they were in use.
            allowed: bytes.
        """
        heap = heap_usage()
        assert heap is not None
        used = max(heap.used_bytes, min(self._known_used, heap.used_bytes) + brief)
        self._known_used = heap.used_bytes
        # What is in use and was never written to is not resident.
        needed = min(charged, self._held_bytes + used - self._begun)
        needed = max(needed, int(charged / HOLES))
        if needed > allowed:
            raise MemoryError(
                f"the stages of this process have taken {needed / 2**20:.0f} MiB of the CPUs' "
                f"memory, of {(allowed - OTHERS_BYTES) / 2**20:.0f} MiB"
            )
        holes = self._resident - heap.used_bytes - _account.not_in_heap
        if holes > WORTH * allowed:
            _account.trim()
            self._resident -= holes
            if charged > allowed:
                _account.tighten()
        else:
            forget_peak()


class _Account:
    """What the calls of this process know together."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.running: set[CallMemory] = set()
        self.not_in_heap = 0
        self._excesses = 0

    def trim(self) -> None:
        """Return the holes; what is resident then and not in use is not in the heap."""
        return_free_pages()
        heap, there = heap_usage(), resident()
        if heap is not None and there is not None:
            self.not_in_heap = there.now_bytes - heap.used_bytes
        forget_peak()

    def tighten(self) -> None:
        """Keep no more what is freed if holes were too large again, though returned before."""
        self._excesses += 1
        if self._excesses >= 2 and not is_returned():
            return_freed()

    def relax(self) -> None:
        """Keep what is freed again."""
        if self._excesses:
            self._excesses = 0
            keep_freed()


_account = _Account()


def learn_heap() -> None:
    """Return the holes of the heap, and know from then on what else is resident."""
    with _account.lock:
        _account.trim()


def keep_again() -> None:
    """Keep what is freed, now that fewer limits are to be kept."""
    with _account.lock:
        _account.relax()
