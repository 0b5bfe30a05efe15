"""Ctrl-C, noted as well as raised.

A `KeyboardInterrupt` can come up in a library that catches everything, and be lost there: compiling
a kernel or importing a module takes seconds and does. The note is still there afterwards.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__: list[str] = ["Interrupt", "interrupt"]


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
