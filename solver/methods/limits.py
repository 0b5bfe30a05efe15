"""When a search ends: its time limit, its gap, and Ctrl-C.

The time limit does not count the time in which numba compiles kernels. That happens once per
installation and takes some twenty seconds; the compiled kernels are kept beside their sources.

Ctrl-C is noted as well as raised. A library that catches everything can swallow a
`KeyboardInterrupt`, as happens while a kernel is compiled or a module is imported. The note stays.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType

from numba.core import event

Progress = Callable[[float, float], None]
"""Called with the best plan's objective value, or infinity, and the lower bound, in seconds."""


@dataclass(slots=True)
class Interrupt:
    """Whether Ctrl-C has come."""

    came: bool = False


@contextmanager
def interrupt() -> Iterator[Interrupt]:
    """Note Ctrl-C while the block runs, and raise it as ever.

    Only where it would be raised anyway: in the main thread, without a handler of the caller's own.
    """
    noted = Interrupt()
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if before is not signal.default_int_handler or not in_main_thread:
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.came = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


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


class TimeUpError(Exception):
    """The time is up, in the middle of a method; what it has yielded counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to end: `began` is by `time.monotonic`, `gap` is relative.

    The time for which kernels are compiled does not count.
    """

    began: float = 0.0
    time_limit_s: float = math.inf
    gap: float = 0.0
    seed: int = 0
    solver: str = "HiGHS"
    progress: Progress | None = None
    interrupt: Interrupt = field(default_factory=Interrupt)
    compiled_before_s: float = field(default_factory=compiled_s)

    @property
    def compiled_s(self) -> float:
        """Seconds for which kernels have been compiled since."""
        return compiled_s() - self.compiled_before_s

    @property
    def deadline(self) -> float:
        """By `time.monotonic`, when to end."""
        return self.began + self.time_limit_s + self.compiled_s

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, not below zero; none are left once Ctrl-C has come."""
        return 0.0 if self.interrupt.came else max(0.0, self.deadline - time.monotonic())

    def share(self, part: float) -> "Limits":
        """The same limits with a part of the time that is left."""
        if math.isinf(self.time_limit_s):
            return self
        gone_s = self.time_limit_s - self.left_s
        return replace(self, time_limit_s=gone_s + part * self.left_s)

    def check(self) -> None:
        """Raise `TimeUpError` where no time is left."""
        if self.left_s <= 0:
            raise TimeUpError
