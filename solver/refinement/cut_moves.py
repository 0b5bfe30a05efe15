"""Stages as parts of one order of the units, and how cuts between them move.

order of the units   a b c | d e f g | h i j
ends                       3         7       10
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from skyfx.solver.methods.heuristics.annealing import Assessed, Cooling, anneal
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem

Result = TypeVar("Result")

Cuts = tuple[int, ...]
"""Where in the order each stage ends, `(num_stages,)`."""

Segments = tuple[tuple[int, ...], Cuts]
"""The device of each stage, `(num_stages,)`, and the cuts."""

OTHER_DEVICES = 0.2
"""How often a device changes."""

SPAN = 0.7
"""The largest power of their number of which units move at once."""


def segments_of(stages: UnitPlacement) -> tuple[list[int], Segments]:
    """The order of the units in these stages, one stage after the other, and the segments of it."""
    order = [unit for _, part in stages for unit in sorted(part)]
    ends = tuple(itertools.accumulate(len(part) for _, part in stages))
    return order, (tuple(d for d, _ in stages), ends)


def stages_of(order: Sequence[int], devices: Sequence[int], ends: Sequence[int]) -> UnitPlacement:
    """The stages that these cuts make."""
    parts = itertools.pairwise((0, *ends))
    return [(d, sorted(order[b:e])) for d, (b, e) in zip(devices, parts, strict=True)]


def all_have_units(ends: Sequence[int]) -> bool:
    """Whether every stage has something to do."""
    return all(begin < end for begin, end in itertools.pairwise((0, *ends)))


def anneal_cuts(
    problem: Problem,
    segments: Segments,
    assess: Callable[[Segments], Assessed[Result]],
    cooling: Cooling,
    seed: int = 0,
) -> Result | None:
    """Anneal the cuts and devices of segments, as `anneal`."""
    random = np.random.default_rng(seed)

    def neighbour(near: Segments) -> Segments | None:
        """None where a stage would have nothing to do."""
        if random.random() < OTHER_DEVICES:
            devices, ends = _other_devices(near, problem.num_devices, random)
        else:
            devices, ends = list(near[0]), moved(near[1], random)
        return (tuple(devices), tuple(ends)) if all_have_units(ends) else None

    return anneal(segments, neighbour, assess, cooling, random)


def _other_devices(
    segments: Segments, num_devices: int, random: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Two stages swap their devices, or an idle device takes a stage or one end of it."""
    devices, ends = list(segments[0]), list(segments[1])
    idle = [d for d in range(num_devices) if d not in devices]
    j, k = (int(x) for x in random.integers(len(devices), size=2))
    kind = int(random.integers(4)) if idle else 0
    if kind == 0:
        devices[j], devices[k] = devices[k], devices[j]
        return devices, ends
    d = int(random.choice(idle))
    if kind == 1:
        devices[k] = d
    elif kind == 2:  # its last units
        ends.insert(k, ends[k] - _some_units(ends[-1], random))
        devices.insert(k + 1, d)
    else:
        ends.insert(k, (0, *ends)[k] + _some_units(ends[-1], random))
        devices.insert(k, d)
    return devices, ends


def moved(ends: Sequence[int], random: np.random.Generator) -> list[int]:
    """Neighbouring cuts, moved by the same number of units; the last end stays."""
    first = int(random.integers(len(ends)))
    last = int(random.integers(first, len(ends)))
    by = int(random.choice((-1, 1))) * _some_units(ends[-1], random)
    found = [end + by if first <= k <= last else end for k, end in enumerate(ends)]
    found[-1] = ends[-1]
    return found


def _some_units(num_units: int, random: np.random.Generator) -> int:
    """A number of units to move: mostly few, at times many."""
    return int(num_units ** (random.random() * SPAN))
