"""How long numba has compiled: no time limit counts it.

A kernel is compiled when an installation first runs it, and kept beside its source. All of them
take some twenty seconds, once; a limit is about what the search does with its time, every time.
"""

import time

from numba.core import event

__all__: list[str] = ["compiled_s"]


class _Watch(event.Listener):
    """Adds up compilations; one that another sets off lies within it."""

    def __init__(self) -> None:
        self.under_way = 0
        self.began = 0.0
        self.total_s = 0.0

    def on_start(self, _: event.Event) -> None:
        if self.under_way == 0:
            self.began = time.monotonic()
        self.under_way += 1

    def on_end(self, _: event.Event) -> None:
        self.under_way -= 1
        if self.under_way == 0:
            self.total_s += time.monotonic() - self.began


_watch = _Watch()
event.register("numba:compile", _watch)  # type: ignore[no-untyped-call]


def compiled_s() -> float:
    """Seconds for which this process has compiled kernels, the one under way not counted."""
    return _watch.total_s
