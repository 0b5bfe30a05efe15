"""Names of a package that are loaded when they are first used (PEP 562).

What a command does not need, it does not wait for: torch, numba and HiGHS take long to import.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`; `homes` says which module each of its names is in.

    No name may be that of a module of the package: once that is imported, the name is the module.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return get
