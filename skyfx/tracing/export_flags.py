"""What models are told when they ask torch whether they are being exported.

Many go another way then: a mask that hides nothing is kept, a solver becomes a loop. Not told, they
compute what they compute eagerly, which is what is to be captured, if it can be.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import compiler

__all__: list[str] = ["export_flags"]


@contextmanager
def export_flags(*, exported: bool) -> Iterator[None]:
    """Within it, torch says that it exports, or that it does not."""
    before = compiler._is_compiling_flag, compiler._is_exporting_flag
    compiler._is_compiling_flag = compiler._is_exporting_flag = exported
    try:
        yield
    finally:
        compiler._is_compiling_flag, compiler._is_exporting_flag = before
