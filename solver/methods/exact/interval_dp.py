"""The best plan whose stages are intervals of one topological order: the ILP's warm start.

It is an exact dynamic program. At a fixed bottleneck T the question is only feasibility. A *state*
says which device runs a stage and which devices may follow. From the last stage to the first:

    least[state][i] = the least time that the stage starting at unit i needs before it receives
                      anything, over all ends j and next states with
                      least[next][j] + move(i..j -> next) <= T

Bisection on T then finds the best bottleneck. With up to `MAX_EXACT_DEVICES` devices a state is
(devices used, device) and every order of devices is tried; with more, it is (place in one fixed
order, stages used).
"""

import itertools
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.costs.moves import move_s, send_s
from skyfx.solver.methods.bisection import INTERVALS, Bisection
from skyfx.solver.methods.bounds.simple_bounds import largest_unit
from skyfx.solver.methods.method import MethodUpdate, SearchState
from skyfx.solver.problem.coarsening import thin_cuts
from skyfx.solver.problem.instance import Floats, Value
from skyfx.solver.problem.interval_tables import live_values
from skyfx.solver.problem.problem import Problem

MAX_EXACT_DEVICES = 5
MAX_ORDERED_DEVICES = 24
MAX_CUTS = 257

Intervals = list[tuple[int, range]]


class State(NamedTuple):
    """A stage on `device` at `position` from the end, which is 1.

    `successors` are the indices, in the list of states, of the states that may come next.
    """

    device: int
    position: int
    successors: tuple[int, ...]


def interval_plan(problem: Problem, at_most: float, deadline: float = math.inf) -> Intervals | None:
    """Find intervals of the units' order with the least bottleneck.

    Args:
        problem: the problem to plan.
        at_most: seconds; a bottleneck that is known to be possible, or infinity.
        deadline: by `time.monotonic`, when to return the best so far.

    Returns:
        Device and interval of units of each stage; None where none of this shape keeps `at_most`.
    """
    table, few = _Table(problem), problem.num_devices <= MAX_EXACT_DEVICES
    states = list(_subset_states(problem.num_devices) if few else _ordered_states(problem))
    high = at_most if math.isfinite(at_most) else table.most_bottleneck()
    best = table.plan(states, high)
    search = Bisection(largest_unit(problem).value, high, INTERVALS)
    for bottleneck in search if best is not None else ():
        if time.monotonic() >= deadline:
            break
        better = table.plan(states, bottleneck)
        if better is None:
            search.low = bottleneck
        else:
            best = better
            search.keep(bottleneck)
    return best


def interval_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find the plan with the least bottleneck whose stages are intervals of the units' order."""
    stages = interval_plan(task.problem, task.bottleneck_s, task.limits.deadline)
    yield MethodUpdate(stages=stages)


def _subset_states(num_devices: int) -> Iterator[State]:
    index: dict[tuple[int, int], int] = {}
    for size in range(1, num_devices + 1):
        for used in itertools.combinations(range(num_devices), size):
            mask = sum(1 << d for d in used)
            for d in used:
                rest = mask & ~(1 << d)
                successors = tuple(index[rest, e] for e in used if e != d)
                index[mask, d] = len(index)
                yield State(d, size, successors)


def _ordered_states(problem: Problem) -> Iterator[State]:
    """States of the fastest devices, slowest first: late stages have memory for more layers."""
    work = np.where(np.isfinite(problem.time_s), problem.time_s, 1e30).sum(axis=1)
    order = work.argsort(kind="stable")[:MAX_ORDERED_DEVICES][::-1].tolist()
    index: dict[tuple[int, int], int] = {}
    for place in reversed(range(len(order))):
        for used in range(1, len(order) - place + 1):
            later = range(place + 1, len(order))
            successors = tuple(index[q, used - 1] for q in later if (q, used - 1) in index)
            if used == 1 or successors:
                index[place, used] = len(index)
                yield State(order[place], used, successors)


class _Table:
    """Costs of all intervals `[cuts[i], cuts[j])`, as `(num_cuts, num_cuts)` arrays."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._add = np.maximum if problem.assumptions.overlap == "full" else np.add
        self._crossing = live_values(problem)
        self._cuts = thin_cuts(problem, range(problem.num_units), MAX_CUTS - 1)
        self._later = np.tri(len(self._cuts), dtype=bool).T  # j >= i; an empty stage only relays
        self._relay = problem.assumptions.communication == "relay"
        host = None if self._relay else _host_counts(problem, self._cuts)
        self._stage_s = [self._stage_time(d, host) for d in range(problem.num_devices)]
        self._memory = [self._stage_memory(p + 1) for p in range(problem.num_devices)]

    def most_bottleneck(self) -> float:
        """No sensible plan is slower than all on the slowest device, with the slowest moves."""
        finite = [float(s[np.isfinite(s)].max()) for s in self._stage_s]
        devices = range(self._problem.num_devices)
        moves = [self._move_s(d, e).max() for d in devices for e in devices if d != e]
        return max(finite) + 2 * max(moves, default=0.0)

    def plan(self, states: list[State], bottleneck: float) -> Intervals | None:
        """Intervals with no stage above `bottleneck`, or None."""
        last = len(self._cuts) - 1
        least: list[Floats] = []
        choice: list[tuple[np.ndarray, np.ndarray]] = []
        for state in states:
            best = np.full(len(self._cuts), np.inf)
            end = np.full(len(self._cuts), last)
            then = np.full(len(self._cuts), -1)
            stage = self._allowed(state)
            if state.position == 1:
                best = stage[:, last].copy()
            for s in state.successors:
                move = self._move_s(state.device, states[s].device)
                onward = self._add(least[s], move) <= bottleneck
                total = self._add(stage, np.where(onward, move, np.inf)[None, :])
                j = total.argmin(axis=1)
                value = total[np.arange(len(j)), j]
                better = value < best
                best[better], end[better], then[better] = value[better], j[better], s
            best[best > bottleneck] = np.inf
            least.append(best)
            choice.append((end, then))
        starts = [s for s in range(len(states)) if np.isfinite(least[s][0])]
        if not starts:
            return None
        return self._trace(states, choice, min(starts, key=lambda s: least[s][0]))

    def _trace(
        self, states: list[State], choice: list[tuple[np.ndarray, np.ndarray]], state: int
    ) -> Intervals:
        stages, i = [], 0
        while state >= 0:
            end, then = choice[state]
            j = int(end[i])
            stages.append((states[state].device, range(self._cuts[i], self._cuts[j])))
            i, state = j, int(then[i])
        return stages

    def _allowed(self, state: State) -> Floats:
        fits = self._memory[state.position - 1] <= self._problem.memory_limit[state.device]
        return np.where(fits & self._later, self._stage_s[state.device], np.inf)

    def _stage_time(self, device: int, host: tuple[Floats, ...] | None) -> Floats:
        time_s = self._problem.time_s[device]
        runs = np.isfinite(time_s)
        compute = self._sums(np.where(runs, time_s, 0.0))
        compute[self._sums(~runs) > 0] = np.inf
        if host is None:
            return compute
        for way, moved in ((True, host[:2]), (False, host[2:])):
            wire = self._problem.host_wire(device, to_host=way)
            compute = self._add(compute, send_s(wire, *moved))
        return compute

    def _stage_memory(self, position: int) -> Floats:
        problem = self._problem
        total = self._sums(problem.need_bytes(position))
        peak = np.zeros((len(self._cuts), len(self._cuts)))
        if not problem.assumptions.training:
            for i, start in enumerate(self._cuts[:-1]):
                peaks = np.maximum.accumulate(problem.peak_bytes[start:])
                peak[i, i + 1 :] = peaks[np.array(self._cuts[i + 1 :]) - start - 1]
        return total + peak

    def _sums(self, of_unit: NDArray[Any]) -> Floats:
        """The sum over the units of each interval, `(num_cuts, num_cuts)`."""
        sums = np.concatenate([[0.0], np.cumsum(of_unit)])[self._cuts]
        return np.asarray(sums[None, :] - sums[:, None])

    def _move_s(self, source: int, target: int) -> Floats:
        """Seconds `(num_cuts,)` to move what crosses each cut, and its gradients back."""
        if not self._relay:
            return np.zeros(len(self._cuts))
        there, back = self._problem.wire(source, target), self._problem.wire(target, source)
        return np.asarray(move_s(there, back, self._crossing)[self._cuts])


def _host_counts(problem: Problem, cuts: list[int]) -> tuple[Floats, ...]:
    """The values that each interval `[cuts[i], cuts[j])` writes to and reads from the host.

    A value made in slice p and read in slices c_1 < c_2 < ... is written where
    i <= p < j <= c_last, and read where some c_m is the first reader at or after i:
    c_(m-1) < i <= c_m < j. Each is a rectangle of (i, j).

    Returns:
        Counts and bytes written, counts and bytes read, each `(num_cuts, num_cuts)`.
    """
    size = len(cuts)
    change = np.zeros((4, size + 1, size + 1))

    def add(table: int, value: Value, i: tuple[int, int], j: tuple[int, int]) -> None:
        for a, b, sign in ((0, 0, 1), (0, 1, -1), (1, 0, -1), (1, 1, 1)):  # corners of i x j
            change[table, i[a], j[b]] += sign * value.count
            change[table + 1, i[a], j[b]] += sign * value.output_bytes

    slice_of = np.searchsorted(cuts, np.arange(problem.num_units), side="right") - 1
    for value in problem.values:
        p = int(slice_of[value.producer])
        readers = sorted({int(slice_of[c]) for c in value.consumers} - {p})
        if readers:
            add(0, value, (0, p + 1), (p + 1, readers[-1] + 1))
        for before, c in zip([p, *readers], readers, strict=False):
            add(2, value, (before + 1, c + 1), (c + 1, size))
    return tuple(np.cumsum(np.cumsum(change, axis=1), axis=2)[:, :size, :size])
