"""The states of this process's random generators: torch's, Python's and numpy's."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch


def generator_states(*, with_torch: bool = True) -> dict[str, Any]:
    """The states, as numbers, tensors and arrays that a checkpoint can keep.

    Args:
        with_torch: whether torch's generators are among them, or Python's and numpy's only.
    """
    others = {"python": random.getstate(), "numpy": numpy.random.get_state(legacy=False)}
    if not with_torch:
        return others
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, **others}


def set_generator_states(states: Mapping[str, Any]) -> None:
    """Set the generators whose states these are; GPUs that the machine lacks are left out."""
    if "torch" in states:
        torch.set_rng_state(states["torch"])
        if torch.cuda.is_available():
            for i, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state, i)
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])


@contextmanager
def preserve_generators(*, with_torch: bool = True) -> Iterator[None]:
    """Set the generators back at the end; without torch's, which threads may have borrowed."""
    before = generator_states(with_torch=with_torch)
    try:
        yield
    finally:
        set_generator_states(before)


def comparable_states() -> dict[str, Any]:
    """The CPU generators' states by the names of their modules, to compare with `==`."""
    arrays: Any = numpy.random.get_state(legacy=True)
    _, keys, *others = arrays
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "numpy.random": (keys.tobytes(), *others),
    }
