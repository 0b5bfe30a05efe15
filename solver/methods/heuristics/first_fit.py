"""A first plan for many small devices, filled one after the other along one order of units."""

import numpy as np

from skyfx.solver.methods.bounds.simple_bounds import largest_unit
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.interval_tables import prefix_sums
from skyfx.solver.problem.problem import Problem

LIMITS = 40
"""Limits of time within which devices are filled."""


def first_fit(
    problem: Problem, order: list[int], most_s: float, limits: Limits
) -> Candidate | None:
    """The best of the plans whose stages fill their devices, within growing limits of time."""
    least_s = min(largest_unit(problem).value, most_s)  # infinite if a unit runs nowhere
    best: Candidate | None = None
    for limit_s in np.geomspace(least_s, most_s, LIMITS):
        limits.check()
        found = Candidate.of(problem, _fill(problem, order, float(limit_s)))
        if found is not None and (best is None or found.value < best.value):
            best = found
    return best


def _fill(problem: Problem, order: list[int], limit_s: float) -> UnitPlacement | None:
    """Give each part of the order to the device whose memory or time it fills best."""
    need = prefix_sums(problem.need_bytes(problem.num_devices)[order])
    time = prefix_sums(np.minimum(problem.time_s[:, order], 1e30))
    free_bytes = np.minimum(problem.memory_limit, 2 * need[-1] + 1) - problem.peak_bytes.max()
    unused, start, stages = free_bytes > 0, 0, []
    free_bytes = np.maximum(free_bytes, 1e-300)
    while start < len(order):
        fits = np.searchsorted(need, need[start] + free_bytes, side="right") - 1
        ends = np.minimum(fits, (time <= time[:, [start]] + limit_s).sum(axis=1) - 1)
        took = np.take_along_axis(time, ends[:, None], 1)[:, 0] - time[:, start]
        share = np.maximum((need[ends] - need[start]) / free_bytes, took / limit_s)
        d = int(np.where(unused & (ends > start), share, -1.0).argmax())
        if not unused[d] or ends[d] <= start:
            return None
        stages.append((d, sorted(order[start : ends[d]])))
        unused[d], start = False, int(ends[d])
    return stages
