"""Units in one order: what its intervals cost each device, and what each device can earn with one.

Where each unit has a *price*, a device earns by an interval what its units' prices add up to; what
it can earn at most within a bottleneck T is what it is worth. Most choices are open to all devices
at once. What only one of them can have is a *role* of its own: to begin the line and receive
nothing, to end it and send nothing, and each of the last positions, where fewer micro-batches are
kept. Roles go to different devices, to those that gain most by them: an assignment problem.

Legend: `prefix_time[d, i]` seconds of the units before cut i on device d; `need[p, i]` bytes of
them at position p + 1 from the end, the last row for all earlier positions too; `crossing[., i]`
what crosses at cut i.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from skyfx.solver.costs.moves import Crossing, move_s
from skyfx.solver.problem.problem import Floats, Problem
from skyfx.solver.problem.tolerances import BOUND_SAFETY

__all__: list[str] = [
    "IntervalTables",
    "assign_roles",
    "best_columns",
    "line",
    "live_values",
    "move",
    "prefix_sums",
    "work_shares",
]

BEGIN, END = 1, 2
"""Roles; 0 is none, those from 3 on are the positions from the second to the last."""

NEVER = 4
"""How many times all work and two moves a unit takes a device that may not run it.

More than any T, and little enough for the sums of the others to keep their digits.
"""


class IntervalTables(NamedTuple):
    """The tables of `n` units in one order, for `D` devices."""

    prefix_time: Floats
    """Seconds of the units before each cut, `(D, n + 1)`."""
    need: Floats
    """Bytes of the units before each cut, `(P, n + 1)`."""
    limit: Floats
    """Bytes of each device, `(D,)`."""
    receive: Floats
    """Least seconds to receive what crosses, `(D, n + 1)`."""
    send: Floats
    """Least seconds to send it, `(D, n + 1)`."""
    crossing: Crossing
    """Of each cut, `(n + 1,)` each."""
    wires: Floats
    """Latency and seconds per byte from device to device, `(2, D, D)`."""


def line(problem: Problem, order: Sequence[int]) -> IntervalTables:
    """The tables of an order of the units; moving in `relay`."""
    wires, crossing = problem.wires, live_values(problem, order)
    receive, send = _cheapest(wires, crossing)
    allowed = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0)
    moves = 2 * (wires[0].max() * 2 + wires[1].max() * sum(crossing[:2]).max())
    never = NEVER * (allowed.max(axis=0).sum() + moves)
    time = np.where(np.isfinite(problem.time_s), problem.time_s, never)
    positions = range(1, min(problem.assumptions.microbatches, problem.num_devices) + 1)
    needs = [prefix_sums(problem.need_bytes(p)[order]) for p in positions]
    need = np.array([needs[0]] if np.array_equal(needs[0], needs[-1]) else needs)
    limit = np.minimum(problem.memory_limit, 1e300)
    return IntervalTables(prefix_sums(time[:, order]), need, limit, receive, send, crossing, wires)


def live_values(problem: Problem, order: Sequence[int] | None = None) -> Crossing:
    """What crosses each cut of an order of the units, `(n + 1,)` each; by default the model's."""
    n = problem.num_units
    place = np.arange(n) if order is None else np.argsort(order)
    change = np.zeros((4, n + 2))
    for value in problem.values:
        first = 0 if value.is_input else place[value.producer] + 1
        last = n if value.is_output else place[list(value.consumers)].max()
        sizes = (value.output_bytes, value.gradient_bytes, value.count, value.gradient_bytes > 0)
        change[:, first] += sizes
        change[:, last + 1] -= sizes
    held = np.cumsum(change, axis=1)[:, : n + 1]
    held[np.abs(held) < 0.5e-9 * np.abs(change).max(axis=1, keepdims=True)] = 0.0
    return Crossing(held[0], held[1], (held[2] > 0.5) * 1.0, (held[3] > 0.5) * 1.0)


def prefix_sums(of_units: Floats) -> Floats:
    """Sums of the units before each cut, along the last axis."""
    zero = np.zeros((*of_units.shape[:-1], 1))
    sums: Floats = np.concatenate([zero, np.cumsum(of_units, axis=-1)], axis=-1)
    return sums


def work_shares(problem: Problem) -> Floats:
    """Prices `(n,)` that add up to 1: each unit's part of all work, on the devices' average."""
    time = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0)
    share = (time / np.maximum(time.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
    share = np.maximum(share, 1e-12 / len(share))
    prices: Floats = share / share.sum()
    return prices


def _cheapest(wires: Floats, crossing: Crossing) -> tuple[Floats, Floats]:
    """The least seconds that each device receives, and sends, what crosses, `(D, n + 1)`."""
    num = wires.shape[1]
    receive, send = np.zeros((2, num, len(crossing.forward)))
    for d in range(num if num > 1 else 0):
        others = np.arange(num) != d
        into, out = wires[:, others, d].min(axis=1), wires[:, d, others].min(axis=1)
        receive[d], send[d] = move_s(into, out, crossing), move_s(out, into, crossing)
    return receive, send


@njit(cache=True)
def move(d: int, e: int, i: int, crossing: Any, wires: Any) -> float:
    """Seconds to move what crosses at cut i from device d to e, and its gradients back."""
    forward, backward = crossing.forward[i], crossing.backward[i]
    here = Crossing(crossing.forward_bytes[i], crossing.backward_bytes[i], forward, backward)
    there, back = (wires[0, d, e], wires[1, d, e]), (wires[0, e, d], wires[1, e, d])
    return float(move_s(there, back, here))


@njit(cache=True)
def best_columns(earned: Any, bottleneck: float, of: Any) -> tuple[Any, Any, Any]:
    """What each device can earn in each role, `(roles, D)`, and the interval `[start, end)` of it.

    `earned[i]` is the price of all units before cut i.
    """
    last, num = len(of.need) - 1, len(of.limit)
    roles = 3 + max(0, last - 1)
    worth = np.zeros((roles, num))
    start = np.zeros((roles, num), dtype=np.int64)
    end = np.zeros((roles, num), dtype=np.int64)
    for d in range(num):
        worth[0, d], start[0, d], end[0, d] = _between(d, last, earned, bottleneck, of)
        end[BEGIN, d] = _begins(d, bottleneck, of)
        worth[BEGIN, d] = earned[end[BEGIN, d]]
        start[END, d], end[END, d] = _ends(d, bottleneck, of), len(earned) - 1
        worth[END, d] = earned[-1] - earned[start[END, d]]
        if roles > 3:
            most, i, j = _between(d, 1, earned, bottleneck, of)
            for role in range(3, roles):  # where memory does not bind, all positions are alike
                worth[role, d], start[role, d], end[role, d] = most, i, j
                if most > worth[0, d] and role > 3:
                    found = _between(d, role - 2, earned, bottleneck, of)
                    worth[role, d], start[role, d], end[role, d] = found
    return worth, start, end


@njit(cache=True)
def assign_roles(gains: Any) -> tuple[float, Any]:
    """The most that a choice of a different device for each role gains, of `gains[role, d]`.

    The assignment problem, by shortest augmenting paths (Kuhn 1955, Jonker and Volgenant 1987).
    Where there are more roles than devices, each is granted its own best.

    Returns:
        The gain, and what each device adds to it, `(D,)`: by so much it is worth more.
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


@njit(cache=True)
def _between(d: int, p: int, earned: Any, bottleneck: float, of: Any) -> tuple[float, int, int]:
    """The interval `[start, end)` between two cuts that earns most on device d, with `need[p]`."""
    w, need, limit, last = of.prefix_time, of.need, of.limit, len(earned) - 2
    best, start, end, furthest = 0.0, 1, 1, 1
    for i in range(1, last):
        furthest = max(furthest, i)
        time = bottleneck - of.receive[d, i] + w[d, i]
        room = limit[d] / BOUND_SAFETY + need[p, i]
        # The furthest end for compute and memory alone; receiving differs from start to start.
        while furthest > i and (w[d, furthest] > time or need[p, furthest] > room):
            furthest -= 1
        while furthest < last and w[d, furthest + 1] <= time and need[p, furthest + 1] <= room:
            furthest += 1
        j = furthest
        while j > i and w[d, j] + of.send[d, j] > time:
            j -= 1
        if earned[j] - earned[i] > best:
            best, start, end = earned[j] - earned[i], i, j
    return best, start, end


@njit(cache=True)
def _begins(d: int, bottleneck: float, of: Any) -> int:
    """The furthest end of device d from the first unit on, receiving nothing."""
    w, n = of.prefix_time, of.prefix_time.shape[1] - 1
    for j in range(n, 0, -1):
        sent = of.send[d, j] if j < n else 0.0
        if of.need[0, j] <= of.limit[d] / BOUND_SAFETY and w[d, j] + sent <= bottleneck:
            return j
    return 0


@njit(cache=True)
def _ends(d: int, bottleneck: float, of: Any) -> int:
    """The first start of device d up to the last unit, sending nothing."""
    w, need, n = of.prefix_time, of.need, of.prefix_time.shape[1] - 1
    for i in range(1, n):
        fits = need[0, n] - need[0, i] <= of.limit[d] / BOUND_SAFETY
        if fits and w[d, n] - w[d, i] + of.receive[d, i] <= bottleneck:
            return i
    return int(n)
