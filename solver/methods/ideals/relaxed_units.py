"""Which units to put aside, so that the rest of a graph has few ideals.

What multiplies ideals are units that stand beside a long stretch of the graph: a mask that all
layers read, a counter that nothing reads, a projection of the encoder's output for a late layer.
A unit's *width* is how many units it is unordered with. Wide units with little work and small
values go first.
"""

import numpy as np

from skyfx.solver.methods.ideals.order_ideals import Ideals, floating
from skyfx.solver.problem.problem import Problem

__all__: list[str] = ["narrowed", "work_of"]

LIGHT = 0.002
"""Share of all work from which on a unit counts as heavy, and is put aside late."""

CHARGED = 0.2
"""So much of its work counts where a unit has one reader, which is charged for it (`charges`)."""


def narrowed(problem: Problem, at_most: int) -> tuple[Ideals, list[int]] | None:
    """The ideals of as much of the graph as leaves few enough, and the units put aside.

    Args:
        problem: what is to be planned.
        at_most: how many ideals there may be.

    Returns:
        None where even half of the work put aside leaves too many.
    """
    ideals = Ideals.of(problem, at_most)
    if ideals is not None:
        return ideals, []
    order = _order(problem)
    most = int(np.searchsorted(np.cumsum(_share(problem)[order]), 0.5))
    low, high, found = 0, most, None
    while low < high:
        middle = (low + high) // 2
        ideals = Ideals.of(problem, at_most, order[:middle])
        if ideals is None:
            low = middle + 1
        else:
            high, found = middle, (ideals, order[:middle])
    return found


def work_of(problem: Problem, units: list[int]) -> float:
    """These units' part of all work."""
    return float(_share(problem)[units].sum())


def _share(problem: Problem) -> np.ndarray:
    """Each unit's part of all work, `(n,)`, on the devices' average."""
    time = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0)
    of_device = time / np.maximum(time.sum(axis=1, keepdims=True), 1e-300)
    share: np.ndarray = of_device.mean(axis=0)
    return share


def _moving(problem: Problem) -> np.ndarray:
    """What moving a unit's values once takes, `(n,)`, as a part of a device's work on average.

    These are the values that it makes and those that it reads.

    What is put aside moves for nothing in the bound, so large values should not be.
    """
    devices = range(problem.num_devices)
    wires = [problem.wire(d, e)[1] for d in devices for e in devices if d != e]
    time = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0)
    size = np.zeros(problem.num_units)
    for value in problem.values:
        ends = [value.producer, *value.consumers]
        size[ends] += value.output_bytes + value.gradient_bytes
    whole = max(float(time.sum(axis=1).mean()), 1e-300)
    moving: np.ndarray = size * (float(np.mean(wires)) if wires else 0.0) / whole
    return moving


def _order(problem: Problem) -> list[int]:
    """The units, those to be put aside first first."""
    n, outside = problem.num_units, set(floating(problem))
    before, after = [0] * n, [0] * n
    for a, b in sorted(problem.edges, key=lambda edge: edge[1]):
        before[b] |= before[a] | 1 << a
    for a, b in sorted(problem.edges, reverse=True):
        after[a] |= after[b] | 1 << b
    width = np.array([n - (before[i] | after[i]).bit_count() for i in range(n)])
    readers = np.array([len(of) for of in problem.readers])
    share = _share(problem) * np.where(readers == 1, CHARGED, 1.0)
    score = width / (1 + (share + _moving(problem)) / LIGHT)
    order = np.argsort(-score, kind="stable")
    return [int(i) for i in order if i not in outside]
