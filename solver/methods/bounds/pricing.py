"""The pricing problem: the best interval of an order of units for each device, by prices of units.

Where each unit has a *price*, the value of an interval is the sum of its units' prices; here is the
interval of most value that a device can do within a bottleneck T. Most intervals are open to all
devices at once. A *role* is open to one device alone: to begin the order and receive nothing, to
end it and send nothing, and each of the last positions, where fewer micro-batches are in flight.
Roles go to different devices, to those that gain most by them: an assignment problem.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from skyfx.solver.kernels import kernel
from skyfx.solver.problem.instance import Floats
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import BOUND_SAFETY

ANY, BEGIN, END, POSITIONS = 0, 1, 2, 3
"""Roles: none, the first stage, the last stage, and from 3 on the positions before the last."""


class Columns(NamedTuple):
    """The best interval `[start, end)` of each device in each role, `(roles, D)` each."""

    value: Any
    start: Any
    end: Any


def work_shares(problem: Problem) -> Floats:
    """Prices `(n,)` that add up to 1: each unit's part of all work, on the devices' average."""
    time = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0)
    share = (time / np.maximum(time.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
    share = np.maximum(share, 1e-12 / len(share))
    prices: Floats = share / share.sum()
    return prices


@kernel()
def best_columns(earned: Any, bottleneck: float, tables: Any) -> Columns:
    """The interval of most value for each device in each role.

    Args:
        earned: the price of all units before each cut, `(n + 1,)`.
        bottleneck: T.
        tables: `IntervalTables`.
    """
    last, num = len(tables.need) - 1, len(tables.limit)
    roles = POSITIONS + max(0, last - 1)
    value = np.zeros((roles, num))
    start = np.zeros((roles, num), dtype=np.int64)
    end = np.zeros((roles, num), dtype=np.int64)
    for d in range(num):
        value[ANY, d], start[ANY, d], end[ANY, d] = _between(d, last, earned, bottleneck, tables)
        end[BEGIN, d] = _begins(d, bottleneck, tables)
        value[BEGIN, d] = earned[end[BEGIN, d]]
        start[END, d], end[END, d] = _ends(d, bottleneck, tables), len(earned) - 1
        value[END, d] = earned[-1] - earned[start[END, d]]
        if roles > POSITIONS:
            most, i, j = _between(d, 1, earned, bottleneck, tables)
            for role in range(POSITIONS, roles):
                value[role, d], start[role, d], end[role, d] = most, i, j
                # Where memory does not bind, all positions are alike.
                if most > value[ANY, d] and role > POSITIONS:
                    found = _between(d, role - 2, earned, bottleneck, tables)
                    value[role, d], start[role, d], end[role, d] = found
    return Columns(value, start, end)


@kernel()
def assign_roles(gains: Any) -> tuple[float, Any]:
    """The largest gain of a choice of different devices for the roles, of `gains[role, d]`.

    The assignment problem, by shortest augmenting paths (Kuhn 1955, Jonker and Volgenant 1987).
    With more roles than devices, each role gets its own best device.

    Returns:
        The gain, and each device's part of it, `(D,)`.
    """
    rows, columns = gains.shape
    u, v = np.zeros(rows + 1), np.zeros(columns + 1)
    if rows > columns:
        return float(sum([gains[p].max() for p in range(rows)])), -v[1:]
    row_of = np.zeros(columns + 1, dtype=np.int64)  # from 1; column 0 is where a path starts
    before = np.zeros(columns + 1, dtype=np.int64)
    for p in range(1, rows + 1):
        row_of[0], here = p, 0
        least, seen = np.full(columns + 1, math.inf), np.zeros(columns + 1, dtype=np.bool_)
        while row_of[here] != 0:
            seen[here] = True
            row, delta, then = row_of[here], math.inf, 0
            for d in range(1, columns + 1):
                if not seen[d]:
                    reduced = -gains[row - 1, d - 1] - u[row] - v[d]
                    if reduced < least[d]:
                        least[d], before[d] = reduced, here
                    if least[d] < delta:
                        delta, then = least[d], d
            for d in range(columns + 1):
                if seen[d]:
                    u[row_of[d]] += delta
                    v[d] -= delta
                else:
                    least[d] -= delta
            here = then
        while here != 0:
            row_of[here], here = row_of[before[here]], before[here]
    gain = sum([gains[row_of[d] - 1, d - 1] for d in range(1, columns + 1) if row_of[d]])
    return float(gain), -v[1:]


@kernel()
def _between(d: int, p: int, earned: Any, bottleneck: float, tables: Any) -> tuple[float, int, int]:
    """The interval `[start, end)` of most value on device d with the memory `need[p]`."""
    w, need, limit, last = tables.prefix_time, tables.need, tables.limit, len(earned) - 2
    best, start, end, furthest = 0.0, 1, 1, 1
    for i in range(1, last):
        furthest = max(furthest, i)
        time = bottleneck - tables.receive[d, i] + w[d, i]
        room = limit[d] / BOUND_SAFETY + need[p, i]
        # The furthest end for compute and memory alone; receiving differs from start to start.
        while furthest > i and (w[d, furthest] > time or need[p, furthest] > room):
            furthest -= 1
        while furthest < last and w[d, furthest + 1] <= time and need[p, furthest + 1] <= room:
            furthest += 1
        j = furthest
        while j > i and w[d, j] + tables.send[d, j] > time:
            j -= 1
        if earned[j] - earned[i] > best:
            best, start, end = earned[j] - earned[i], i, j
    return best, start, end


@kernel()
def _begins(d: int, bottleneck: float, tables: Any) -> int:
    """The last end of an interval from the first unit on, which receives nothing."""
    w, n = tables.prefix_time, tables.prefix_time.shape[1] - 1
    for j in range(n, 0, -1):
        sent = tables.send[d, j] if j < n else 0.0
        if tables.need[0, j] <= tables.limit[d] / BOUND_SAFETY and w[d, j] + sent <= bottleneck:
            return j
    return 0


@kernel()
def _ends(d: int, bottleneck: float, tables: Any) -> int:
    """The first start of an interval up to the last unit, which sends nothing."""
    w, need, n = tables.prefix_time, tables.need, tables.prefix_time.shape[1] - 1
    for i in range(1, n):
        fits = need[0, n] - need[0, i] <= tables.limit[d] / BOUND_SAFETY
        if fits and w[d, n] - w[d, i] + tables.receive[d, i] <= bottleneck:
            return i
    return int(n)
