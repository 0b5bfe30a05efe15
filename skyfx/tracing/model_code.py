"""Tells a model's own code from that of torch and skyfx."""

from functools import cache
from pathlib import Path

import torch

_LIBRARIES = (Path(torch.__file__).parent, Path(__file__).parents[1])


@cache
def is_library_file(file: str) -> bool:
    """Whether a source file belongs to torch or to skyfx, which a model's author cannot change."""
    return any(Path(file).is_relative_to(folder) for folder in _LIBRARIES)
