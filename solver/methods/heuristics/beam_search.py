"""Plans for many devices: beam search over their order, along one order of units.

At a fixed bottleneck T the plan is built from its first stage on. A *state* says which devices are
used, where the last of them starts and how long it receives. For each device that may come next the
open stage ends where that device gets furthest: a later cut is better, but so is a cut that fewer
bytes cross. Of all states with the same number of stages the best `width` are kept. The best states
have *lost* least: the value of their devices (`pricing`: the most that each can do within T, where
a unit's price is its part of all work) less the price of the units done. So a slow device counts as
much as a fast one, and one with slow links is no worse for them. The next device is credited with
the most that it may do.

If a state comes to the end of the units, T falls. If none does, T falls by less, and then the beam
is widened.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from skyfx.solver.kernels import kernel
from skyfx.solver.methods.bounds.pricing import ANY, BEGIN, assign_roles, best_columns, work_shares
from skyfx.solver.methods.bounds.simple_bounds import largest_unit
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate, MethodUpdate, SearchState
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.interval_tables import interval_tables, move, prefix_sums
from skyfx.solver.problem.linear_extensions import depth_first_extension
from skyfx.solver.problem.problem import Problem

FIRST_STEP, LAST_STEP, MAX_STEP = 0.1, 5e-4, 0.5
"""How far below the best plan the next is looked for."""

WIDER_STEP = 2e-3
"""The same after the beam was widened."""

FIRST_WIDTH, WIDER = 250, 4

LIMITS = 40
"""Limits of time within which devices are filled for a first plan."""

MAX_CHILDREN = 1 << 21
"""States that the widest beam's may lead to."""


def beam_search(task: SearchState) -> Iterator[MethodUpdate]:
    """Find plans of many devices, in relay, better and better until the beam is at its widest."""
    problem = task.problem
    search = _Beam(problem, task.limits)
    if not search.of.prefix_time[:, -1].min() > 0:
        yield MethodUpdate(remark="nothing takes any time")
        return
    low, high = task.bound.value, min(task.bottleneck_s, search.most_s)
    if task.incumbent is None:
        first = _first_fit(problem, search.order, search.most_s, task.limits)
        high = first.cost.bottleneck_s if first else search.most_s
        yield MethodUpdate(
            stages=first.stages if first else None, remark="devices filled one by one"
        )
    aim = min(low * (1 + task.limits.gap), high)
    width, step, tried, found = FIRST_WIDTH, FIRST_STEP, 0, 0
    while width * problem.num_devices <= MAX_CHILDREN and high > low:
        stages = search.plan(max(high * (1 - step), aim), width)
        tried += 1
        reached = math.inf if stages is None else problem.cost(stages).bottleneck_s
        if reached < high:
            found, high, step = found + 1, reached, min(MAX_STEP, 1.5 * step)
            yield MethodUpdate(
                stages=stages, remark=f"beams of {width}, {found} of {tried} found a plan"
            )
        elif step > LAST_STEP:  # also where the search thinks better of a plan than the cost model
            step /= 2
        elif not search.cut:
            return
        else:
            width, step = width * WIDER, WIDER_STEP


def _first_fit(
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


class _States(NamedTuple):
    """States of as many stages, a row each."""

    used: Any
    """Bits of the devices that are used."""
    device: Any
    """The last of them, whose stage is open."""
    start: Any
    """The first unit of the open stage."""
    received: Any
    """Seconds that it receives."""
    owed: Any
    """The value of the used devices."""
    lost: Any
    """A lower bound on the lost value."""
    parent: Any
    """The row of the state before."""

    @classmethod
    def empty(cls, count: int, devices: int) -> "_States":
        """Arrays for a number of states."""
        used = np.zeros((count, (devices + 63) // 64), dtype=np.uint64)
        device, start, parent = (np.zeros(count, dtype=np.int64) for _ in range(3))
        received, owed, lost = (np.zeros(count) for _ in range(3))
        return cls(used, device, start, received, owed, lost, parent)

    def of_rows(self, rows: Any) -> "_States":
        """A copy of some."""
        return _States(*(column[rows] for column in self))


class _Beam:
    """The tables of the order of units, by which a beam is expanded."""

    def __init__(self, problem: Problem, limits: Limits) -> None:
        self.problem, self.limits, self.order = problem, limits, depth_first_extension(problem)
        of = interval_tables(problem, self.order)
        self.of = of._replace(limit=of.limit - problem.peak_bytes.max())
        self.earned = prefix_sums(work_shares(problem)[self.order])
        self.most_s = 2 * float(self.of.prefix_time[:, -1].max())
        """An upper bound on any device's total time, in seconds."""
        self.cut = False
        """Whether the last beam was too narrow for all states."""

    def plan(self, bottleneck: float, width: int) -> UnitPlacement | None:
        """The plan within T that a beam of this width comes to first."""
        values = best_columns(self.earned, bottleneck, self.of).value
        value = values[ANY] + assign_roles(np.maximum(values[BEGIN:] - values[ANY], 0.0))[1]
        num = len(value)
        states = _States.empty(num, num)
        for d in range(num):
            states.used[d, d // 64] |= np.uint64(1 << d % 64)
        states.device[:], states.owed[:] = np.arange(num), value
        children = _States.empty(max(width, num) * num, num)
        history, self.cut = [states], False
        for stage in range(num):
            self.limits.check()
            count = expand(stage, states, children, bottleneck, value, self.earned, self.of)
            if count < 0:
                return self._placement(history, -1 - count)
            self.cut |= count > width
            states = children.of_rows(_best(children, count, width))
            history.append(states)
        return None

    def _placement(self, history: list[_States], row: int) -> UnitPlacement:
        """The stages that led to a state whose last stage goes on to the end."""
        stages, end = [], len(self.order)
        for states in reversed(history):
            start = int(states.start[row])
            stages.append((int(states.device[row]), sorted(self.order[start:end])))
            row, end = int(states.parent[row]), start
        return stages[::-1]


def _best(children: _States, count: int, width: int) -> Any:
    """The rows of the states that have lost least; of those of the same devices only one."""
    lost = children.lost[:count]
    rows = np.argpartition(lost, 2 * width)[: 2 * width] if count > 2 * width else np.arange(count)
    rows = rows[np.argsort(lost[rows], kind="stable")]
    odd = np.random.default_rng(0).integers(1, 2**63, children.used.shape[1], dtype=np.uint64)
    with np.errstate(over="ignore"):
        key = (children.used[rows] * (2 * odd + 1)).sum(axis=1, dtype=np.uint64)
        key = key * np.uint64(1024) + children.device[rows].astype(np.uint64)
    _, first = np.unique(key, return_index=True)
    return rows[np.sort(first)[:width]]


@kernel()
def expand(
    stage: int, states: Any, children: Any, bottleneck: float, value: Any, earned: Any, of: Any
) -> int:
    """Close the open stage of each state for each device that may come next.

    Returns:
        How many children there are; or -1 - row of a state whose open stage goes on to the end.
    """
    w, num, n = of.prefix_time, len(value), len(earned) - 1
    positions, count = len(of.need) - 1, 0
    need, after = of.need[min(positions, num - stage - 1)], of.need[min(positions, num - stage - 2)]
    for row in range(len(states.device)):
        d, start = states.device[row], states.start[row]
        time = bottleneck - states.received[row] + w[d, start]
        furthest = _furthest(w[d], time, need, of.limit[d] + need[start], start)
        if furthest == n:
            return -1 - row
        for e in range(num if stage + 1 < num else 0):
            if (states.used[row, e >> 6] >> np.uint64(e & 63)) & np.uint64(1):
                continue
            most, end, got, least = -1.0, start, 0.0, math.inf
            for j in range(furthest, start, -1):
                sent = move(d, e, j, of.crossing, of.wires)
                if sent < least and sent < bottleneck and w[d, j] + sent <= time:
                    least = sent
                    reached = _reached(e, j, bottleneck - sent, after, of)
                    if earned[reached] > most:
                        most, end, got = earned[reached], j, sent
                if w[e, furthest] - w[e, j] > least:  # what is left over alone is more by now
                    break
            if end == start:
                continue
            children.used[count] = states.used[row]
            children.used[count, e >> 6] |= np.uint64(1) << np.uint64(e & 63)
            children.device[count], children.start[count] = e, end
            children.received[count], children.parent[count] = got, row
            children.owed[count] = states.owed[row] + value[e]
            children.lost[count] = children.owed[count] - most
            count += 1
    return count


@kernel()
def _furthest(w: Any, time: float, need: Any, room: float, start: int) -> int:
    """The furthest end that time without sending, and memory, allow."""
    low, high = start, len(w) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if w[middle] <= time and need[middle] <= room:
            low = middle
        else:
            high = middle - 1
    return low


@kernel()
def _reached(e: int, start: int, left: float, need: Any, of: Any) -> int:
    """Where a stage of device e may end at the furthest that has so much time left."""
    w, send = of.prefix_time[e], of.send[e]
    time, room = left + w[start], of.limit[e] + need[start]
    low, high = start, len(w) - 1
    if w[high] <= time and need[high] <= room:
        return high
    while low < high:  # as if sending took no longer from later cuts; nearly so
        middle = (low + high + 1) // 2
        if w[middle] + send[middle] <= time and need[middle] <= room:
            low = middle
        else:
            high = middle - 1
    return low
