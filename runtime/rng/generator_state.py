"""Where the random generators of this process stand: torch's, Python's and numpy's."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch

__all__: list[str] = ["generators", "generators_kept", "set_generators"]


def generators() -> dict[str, Any]:
    """Where they stand, in numbers, tensors and arrays that a checkpoint can keep."""
    has_cuda = torch.cuda.is_available()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if has_cuda else [],
        "python": random.getstate(),
        "numpy": numpy.random.get_state(legacy=False),
    }


def set_generators(states: Mapping[str, Any]) -> None:
    """Put them where they stood; those of GPUs as far as there are as many."""
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for i, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, i)
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])


@contextmanager
def generators_kept() -> Iterator[None]:
    """Afterwards they stand where they did before."""
    before = generators()
    try:
        yield
    finally:
        set_generators(before)
