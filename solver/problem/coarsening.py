"""A long model as a shorter one: slices of as much work, cut where the fewest bytes are alive.

A plan of the slices is a plan of the model, found in a small part of the time. What the finer cuts
are good for is looked for from there. A bound for the slices says nothing of the model.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from skyfx.solver.problem.interval_tables import live_values
from skyfx.solver.problem.linear_extensions import depth_first_extension
from skyfx.solver.problem.problem import Problem, UnitPlacement

__all__: list[str] = ["MAX_UNITS", "coarsen", "refine", "thin_cuts"]

MAX_UNITS = 1000
"""Of more units slices are made."""

SLICES = 640


def coarsen(problem: Problem) -> Problem:
    """The problem with slices for units."""
    order = depth_first_extension(problem)
    label: dict[int, str] = {}
    for begin, end in pairwise(thin_cuts(problem, order, SLICES)):
        for unit in order[begin:end]:
            label |= dict.fromkeys(problem.members[unit], f"slice {begin}")
    nodes = (replace(node, colocate=label[i]) for i, node in enumerate(problem.graph.nodes))
    graph = replace(problem.graph, nodes=tuple(nodes))
    return type(problem)(graph, problem.cluster, problem.assumptions)


def refine(problem: Problem, coarse: Problem, stages: UnitPlacement) -> UnitPlacement:
    """A plan of the slices by the units that they are made of."""
    return [
        (d, sorted({problem.unit_of[name] for name in names}))
        for (d, _), (_, names) in zip(stages, coarse.placement(stages), strict=True)
    ]


def thin_cuts(problem: Problem, order: Sequence[int], most: int) -> list[int]:
    """Cuts of an order of the units, from 0 to `n`, of which so many are inner ones at the most.

    All of them, if there are few enough. Else one from each of so many slices of equal work, where
    the fewest bytes are alive.
    """
    n = problem.num_units
    if n <= most:
        return list(range(n + 1))
    held = sum(live_values(problem, order)[:2])
    times = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0).mean(axis=0)[list(order)]
    work = np.concatenate([[0.0], np.cumsum(times + times.sum() / n)])
    slices = np.minimum((work / work[-1] * most).astype(int), most - 1)
    best: dict[int, int] = {}
    for cut in range(1, n):
        other = best.setdefault(int(slices[cut]), cut)
        if held[cut] < held[other]:
            best[int(slices[cut])] = cut
    return [0, *sorted(best.values()), n]
