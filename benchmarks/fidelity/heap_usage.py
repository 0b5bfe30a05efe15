"""The most memory that a process has in use during a call, by the C library's own count."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from skyfx.runtime import pytree
from skyfx.runtime.memory.malloc import heap_usage

__all__ = ["measured_peak"]

EVERY_S = 0.0002


def measured_peak(
    call: Callable[[], None], states: Iterable[Mapping[str, Any]], model: nn.Module
) -> float:
    """The peak of the bytes of all tensors while `call` runs, from the model's own on.

    The count is of malloc's main arena; a process that skyfx runs in has no other.

    Args:
        call: runs a step.
        states: the optimizer's, which are there all the time.
        model: whose parameters and buffers are there.
    """
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [x for state in states for x in pytree.tree_leaves(dict(state))]
    there = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in tensors
        if isinstance(x, Tensor) and not x.is_meta
    }
    before = most = _in_use()
    over = threading.Event()

    def look() -> None:
        nonlocal most
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # this thread, beside the one at work
        while not over.is_set():
            most = max(most, _in_use())
            time.sleep(EVERY_S)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        call()
    finally:
        over.set()
        looking.join()
    return float(sum(there.values()) + most - before)


def _in_use() -> int:
    usage = heap_usage()
    assert usage is not None, "this C library does not count what its heap holds"
    return usage.used_bytes
