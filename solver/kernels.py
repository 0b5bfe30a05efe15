"""The decorator of compiled kernels. What is kept of them on disk is never older than the code.

numba keeps what it compiled, and compiles a function again when the function's own file has
changed. But functions, named tuples and constants of other files are compiled in too: after a
change there it would run the old code, or fail to read its own index. So a change in any file
that kernels may use drops all that was kept.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

SOURCES = ("costs", "problem", "methods")
"""The folders whose code is compiled in."""


def kernel(*, inline: bool = False) -> Callable[[Function], Function]:
    """Compile a function on its first call, or read it from disk.

    Args:
        inline: whether its code goes into each kernel that calls it.
    """

    def compiled(function: Function) -> Function:
        made: Any = njit(cache=True, inline="always" if inline else "never")(function)
        drop_older(Path(made.stats.cache_path), changed_s())
        kept: Function = made
        return kept

    return compiled


@cache
def changed_s() -> float:
    """When the code of kernels was changed last, as a file's time."""
    solver = Path(__file__).parent
    files = (path for folder in SOURCES for path in (solver / folder).rglob("*.py"))
    return max(path.stat().st_mtime for path in files)


@cache
def drop_older(kept: Path, than_s: float) -> None:
    """Remove the compiled kernels in a folder that were kept before that time."""
    for path in kept.glob("*.nb[ic]"):
        with suppress(OSError):  # another process has removed it, or nobody may
            if path.stat().st_mtime < than_s:
                path.unlink()
