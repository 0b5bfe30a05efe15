"""The decorator of compiled kernels. What is kept of them on disk is never older than the code.

numba keeps what it compiled, and compiles a function again when the function's own file has
changed. But functions, named tuples and constants of other files are compiled in too: after a
change there it would run the old code, or fail to read its own index. So a change in any file
that kernels may use drops all that was kept.

Compiled code runs for seconds. It holds no lock of Python's meanwhile, so that other threads go on:
those that tell the other processes that this one is alive, above all.

Processes that start together, as those of a job, need the same kernels: one compiles, the others
wait and read what it has kept.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from numba import njit
from numba.core.compiler_lock import global_compiler_lock

Function = TypeVar("Function", bound=Callable[..., Any])

SOURCES = ("costs", "problem", "methods")
"""The folders whose code is compiled in."""

PATIENCE_S = 120.0
"""How long a process waits for another one to compile a kernel, before it does so itself."""


def kernel(*, inline: bool = False) -> Callable[[Function], Function]:
    """Compile a function on its first call, or read it from disk.

    Args:
        inline: whether its code goes into each kernel that calls it.
    """

    def compiled(function: Function) -> Function:
        made: Any = njit(cache=True, nogil=True, inline="always" if inline else "never")(function)
        folder = Path(made.stats.cache_path)
        drop_older(folder, changed_s())
        compile_alone(made, folder / f"{function.__module__}.{function.__qualname__}.lock")
        kept: Function = made
        return kept

    return compiled


def compile_alone(made: Any, path: Path) -> None:
    """Have a kernel compiled by one process at a time; the lock is one kernel's.

    A kernel's lock is held while those that it calls are compiled, and never the other way round.
    """
    of_numba = made.compile

    def of_one_process(signature: Any) -> Any:
        # In this order in all threads; a lock's object is no use in a process that was forked.
        with global_compiler_lock, held(FileLock(path)):
            return of_numba(signature)

    made.compile = of_one_process


@contextmanager
def held(lock: FileLock) -> Iterator[None]:
    """Hold a lock between processes, if that can be."""
    try:
        lock.acquire(timeout=PATIENCE_S)
    except (NotImplementedError, OSError, Timeout):  # nothing can be kept there, or another hangs
        yield
        return
    try:
        yield
    finally:
        lock.release()


@cache
def changed_s() -> float:
    """When the code of kernels was changed last, as a file's time."""
    solver = Path(__file__).parent
    files = [path for folder in SOURCES for path in (solver / folder).rglob("*.py")]
    return max(path.stat().st_mtime for path in (*files, Path(__file__)))


@cache
def drop_older(kept: Path, than_s: float) -> None:
    """Remove the compiled kernels in a folder that were kept before that time."""
    for path in kept.glob("*.nb[ic]"):
        with suppress(OSError):  # another process has removed it, or nobody may
            if path.stat().st_mtime < than_s:
                path.unlink()
