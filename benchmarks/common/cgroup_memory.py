"""What the kernel counts of the memory that a host's process takes: a control group for each.

No limit is set in the group: who takes more than his device has is told so, and not killed.
"""

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from benchmarks.common.emulated_hosts import Running

__all__: list[str] = ["OTHERS_BYTES", "groups", "most_charged"]

T = TypeVar("T")

MEMORY = Path("/sys/fs/cgroup/memory")

OTHERS_BYTES = 8 * 2**20
"""What the interpreter, gloo and threads' stacks may take in a step beside tensors."""


@contextmanager
def groups(running: Running) -> Iterator[None]:
    """A control group for the memory of each host; removed in the end."""
    folders = [MEMORY / f"{running.prefix}{i}" for i in range(len(running.hosts))]
    try:
        for folder in folders:
            folder.mkdir()
        yield
    finally:
        for folder in folders:
            if folder.is_dir():
                folder.rmdir()


def most_charged(call: Callable[[], T]) -> tuple[T, int]:
    """What the call returns, and the most bytes that this process took for it at a time.

    What was there before is not among them.
    """
    group = MEMORY / Path(os.environ["QUOTA"]).name
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free would be used without being charged
    _write(group, "memory.max_usage_in_bytes", 0)
    earlier = _read(group, "memory.usage_in_bytes")  # by a call before, and still there
    _write(group, "cgroup.procs", os.getpid())
    try:
        found = call()
    finally:
        _write(MEMORY, "cgroup.procs", os.getpid())
    return found, _read(group, "memory.max_usage_in_bytes") - earlier


def _read(group: Path, what: str) -> int:
    return int((group / what).read_text())


def _write(group: Path, what: str, value: int) -> None:
    (group / what).write_text(str(value))
