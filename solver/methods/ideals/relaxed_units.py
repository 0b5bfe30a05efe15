"""Which units to relax, so that the rest of a graph has few ideals.

A relaxed unit is left out of the lattice of ideals; its work may then be anywhere. This can only
lower a bound, and a plan gives each relaxed unit a place afterwards.

Units that are parallel to a long part of the graph multiply the ideals: a mask that all layers
read, a counter that nothing reads, a projection of the encoder's output for a late layer. The
*width* of a unit is the number of units that it is unordered with. Wide units with little work and
small values are relaxed first.
"""

import numpy as np

from skyfx.solver.methods.ideals.order_ideals import Ideals, floating
from skyfx.solver.problem.problem import Problem

LIGHT = 0.002
"""Share of all work from which on a unit counts as heavy, and is relaxed late."""

CHARGED = 0.2
"""The part of its work that counts if a unit has one reader, which `relaxed_charges` charges."""


def relax_until(problem: Problem, at_most: int) -> tuple[Ideals, list[int]] | None:
    """Relax units until there are few ideals.

    Args:
        problem: the problem to plan.
        at_most: the most ideals.

    Returns:
        The ideals and the relaxed units; None if relaxing half of the work leaves too many ideals.
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


def work_share(problem: Problem, units: list[int]) -> float:
    """The share of these units in all work."""
    return float(_share(problem)[units].sum())


def _share(problem: Problem) -> np.ndarray:
    """The share of each unit in all work, `(n,)`, as an average over the devices."""
    time = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0)
    of_device = time / np.maximum(time.sum(axis=1, keepdims=True), 1e-300)
    return np.asarray(of_device.mean(axis=0))


def _moving(problem: Problem) -> np.ndarray:
    """Time to move a unit's outputs and inputs once, `(n,)`, as a share of a device's work.

    Values of relaxed units move for free in the bound, so units with large values are relaxed late.
    """
    devices = range(problem.num_devices)
    wires = [problem.wire(d, e)[1] for d in devices for e in devices if d != e]
    time = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0)
    size = np.zeros(problem.num_units)
    for value in problem.values:
        ends = [value.producer, *value.consumers]
        size[ends] += value.output_bytes + value.gradient_bytes
    whole = max(float(time.sum(axis=1).mean()), 1e-300)
    return size * (float(np.mean(wires)) if wires else 0.0) / whole


def _order(problem: Problem) -> list[int]:
    """The units in the order in which to relax them."""
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
