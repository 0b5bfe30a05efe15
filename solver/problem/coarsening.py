"""A long model as a shorter one: slices of equal work, cut where the fewest bytes cross.

A plan of the slices is a plan of the model, found in a small part of the time. The search for finer
cuts starts from it. A bound for the slices is no bound for the model.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.interval_tables import live_values
from skyfx.solver.problem.linear_extensions import depth_first_extension
from skyfx.solver.problem.problem import Problem

MAX_UNITS = 1000
"""A problem of more units is coarsened."""

SLICES = 640


def coarsen(problem: Problem) -> Problem:
    """The problem with slices for units."""
    order = depth_first_extension(problem)
    label: dict[int, str] = {}
    for begin, end in pairwise(thin_cuts(problem, order, SLICES)):
        for unit in order[begin:end]:
            label |= dict.fromkeys(problem.members[unit], f"slice {begin}")
    groups = tuple(label[i] for i in range(len(problem.graph.nodes)))
    return replace(problem, groups=groups)


def refine(problem: Problem, coarse: Problem, stages: UnitPlacement) -> UnitPlacement:
    """A plan of the slices in the units of the problem."""
    return [
        (d, sorted({problem.unit_of[name] for name in names}))
        for (d, _), (_, names) in zip(stages, coarse.placement(stages), strict=True)
    ]


def thin_cuts(problem: Problem, order: Sequence[int], most: int) -> list[int]:
    """Cuts of an order of the units, from 0 to `n`, with at most `most` inner ones.

    All cuts, if they are few enough. Else one from each of `most` slices of equal work, where the
    fewest bytes cross.
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
