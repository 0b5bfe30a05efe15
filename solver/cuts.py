"""Stages as parts of one order of the units, and how cuts between them move.

order of the units   a b c | d e f g | h i j
ends                       3         7       10
"""

import itertools
from collections.abc import Sequence

import numpy as np

from skyfx.solver.problem import UnitPlacement

__all__: list[str] = ["Cuts", "all_have_units", "moved", "some_units", "stages_of"]

Cuts = tuple[int, ...]
"""Where in the order each stage ends, `(num_stages,)`."""

SPAN = 0.7
"""As which power of their number units move, at the most."""


def stages_of(order: Sequence[int], devices: Sequence[int], ends: Sequence[int]) -> UnitPlacement:
    """The stages that these cuts make."""
    parts = itertools.pairwise((0, *ends))
    return [(d, sorted(order[b:e])) for d, (b, e) in zip(devices, parts, strict=True)]


def all_have_units(ends: Sequence[int]) -> bool:
    """Whether every stage has something to do."""
    return all(begin < end for begin, end in itertools.pairwise((0, *ends)))


def moved(ends: Sequence[int], random: np.random.Generator) -> list[int]:
    """Some cuts that stand beside each other move by as many units; the last end stays."""
    first = int(random.integers(len(ends)))
    last = int(random.integers(first, len(ends)))
    by = int(random.choice((-1, 1))) * some_units(ends[-1], random)
    found = [end + by if first <= k <= last else end for k, end in enumerate(ends)]
    found[-1] = ends[-1]
    return found


def some_units(num_units: int, random: np.random.Generator) -> int:
    """A number of units to be moved: mostly few, at times many."""
    return int(num_units ** (random.random() * SPAN))
