"""Plans for many devices: simulated annealing over the order of devices, along one order of units.

At a fixed bottleneck T an order of devices is *walked*: each device in turn takes units as far as T
and its memory allow, with an eye on the next: of the ends near the furthest it takes the one after
which the next device loses least to receiving. What counts is how much of the work is done when the
devices are used up, to a fraction of the next unit. If all is done, T falls by a step and the
search goes on from that order; if a whole cooling ends without, the step is halved and the next
cooling is slower.

Legend: `w[d, i]` seconds of the units before i on device d; `move[., i]` what crosses at cut i;
`starts[k]` and `got[k]`: where stage k starts and the seconds that it receives.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit

from skyfx.solver.bounds import largest_unit
from skyfx.solver.interval import alive
from skyfx.solver.method import Answer, Candidate, Limits, Task
from skyfx.solver.orders import late_order
from skyfx.solver.problem import Floats, Problem, UnitPlacement

__all__: list[str] = ["annealing"]

FIRST_STEP, LAST_STEP = 0.1, 5e-4
"""How far below the best plan the next is looked for."""

FIRST_TRIES = 20_000
"""Orders that are tried in the first cooling; each that fails makes the next slower."""

SLOWER = 1.6
PATIENCE = 2000
"""So many orders, times the devices squared, are the slowest cooling; if that fails, it is over."""

HOT, COLD = 1e-3, 1e-5
"""Temperatures, in parts of all work: those of a unit's work, down to nothing."""

FILLS = 40
"""Limits of time within which devices are filled where no plan is known."""

LONGEST_TURN = 8
"""Of a run of devices that is turned round."""

CHUNK = 20_000
"""Orders that are tried between two looks at the clock."""


def annealing(task: Task) -> Iterator[Answer]:
    """Find plans of many devices, in relay, better and better until nothing comes any more."""
    problem = task.problem
    if problem.assumptions.communication != "relay" or problem.num_devices < 2:
        yield Answer(says="only for relay and several devices")
        return
    search = _Search(problem, task.limits.seed)
    if not search.work > 0:
        yield Answer(says="nothing takes any time")
        return
    if task.best is None:
        yield from _first_plans(task, search)
        best = search.best
        task = replace(task, best=best) if best is not None else task
    high = min(task.bottleneck_s, search.most_s)
    step, tries, found = FIRST_STEP, FIRST_TRIES, 0
    most = max(FIRST_TRIES, PATIENCE * problem.num_devices**2)
    while tries <= most and high > task.bound.value and task.limits.left_s > 0:
        bottleneck = high * (1 - step)
        stages = search.cool(bottleneck, tries, task.limits)
        reached = math.inf if stages is None else problem.cost(stages).bottleneck_s
        if reached >= high:  # also where the walk thinks better of a plan than the cost model
            step, tries = max(step / 2, LAST_STEP), int(tries * SLOWER)
            continue
        found, high = found + 1, reached
        yield Answer(stages=stages, says=f"{search.tried} orders of devices, {found} times better")


def _first_plans(task: Task, search: "_Search") -> Iterator[Answer]:
    """Fill the devices one after the other, within more and more time, until there is a plan."""
    problem, most_s = task.problem, search.most_s
    least_s = min(largest_unit(problem).value, most_s)  # endless if a unit runs nowhere
    for limit_s in np.geomspace(least_s, most_s, FILLS):
        filled = _filled(problem, search.order, float(limit_s))
        found = Candidate.of(problem, filled)
        if found is None or (search.best is not None and found.value >= search.best.value):
            continue
        used = [d for d, _ in found.stages]
        search.best = found
        search.devices[:] = [*used, *(d for d in search.devices if d not in used)]
        yield Answer(stages=filled, says="devices filled one after the other")


class _Search:
    """The order of devices that is being changed, and what its walk left behind."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.order, self.tables = late_order(problem), _tables(problem)
        self.work = float(self.tables[1][-1])
        self.devices = _first_order(problem)
        self.starts = np.zeros(problem.num_devices + 1, dtype=np.int64)
        self.got = np.zeros(problem.num_devices + 1)
        self.random = np.random.default_rng(seed)
        self.tried = 0
        self.best: Candidate | None = None
        self.most_s = 2 * float(self.tables[0][:, -1].max())
        """Seconds that all work takes no device longer than."""

    def cool(self, bottleneck: float, tries: int, limits: Limits) -> UnitPlacement | None:
        """Cool down once at a fixed T; returns a plan as soon as a walk comes to the end."""
        done = 0
        while done < tries and limits.left_s > 0:
            heat = HOT * (COLD / HOT) ** (done / tries)
            seed = int(self.random.integers(2**31))
            part = min(CHUNK, tries)
            state = (self.devices, self.starts, self.got)
            done += part
            self.tried += part
            if anneal(*state, bottleneck, heat, part, seed, self.tables):
                return _placement(self.order, self.devices, self.starts)
        return None


def _placement(order: list[int], devices: np.ndarray, starts: np.ndarray) -> UnitPlacement:
    """The plan of a walk that came to the end."""
    return [
        (int(d), sorted(order[a:b]))
        for d, a, b in zip(devices, starts, starts[1:], strict=False)
        if b > a
    ]


def _first_order(problem: Problem) -> np.ndarray:
    """Devices with more memory for their speed first: early stages keep more micro-batches."""
    work = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0).sum(axis=1)
    room = np.minimum(problem.memory_limit, 1e150) * np.maximum(work, 1e-300)
    return np.argsort(-room, kind="stable").astype(np.int64)


def _filled(problem: Problem, order: list[int], limit_s: float) -> UnitPlacement | None:
    """Give each part of the order to the device whose memory or time it fills best."""
    need = _running(problem.need_bytes(problem.num_devices)[order])
    time = _running(np.minimum(problem.time_s[:, order], 1e30))
    room = np.minimum(problem.memory_limit, 2 * need[-1] + 1) - problem.peak_bytes.max()
    free, start, stages = room > 0, 0, []
    room = np.maximum(room, 1e-300)
    while start < len(order):
        fits = np.searchsorted(need, need[start] + room, side="right") - 1
        ends = np.minimum(fits, (time <= time[:, [start]] + limit_s).sum(axis=1) - 1)
        took = np.take_along_axis(time, ends[:, None], 1)[:, 0] - time[:, start]
        share = np.maximum((need[ends] - need[start]) / room, took / limit_s)
        d = int(np.where(free & (ends > start), share, -1.0).argmax())
        if not free[d] or ends[d] <= start:
            return None
        stages.append((d, sorted(order[start : ends[d]])))
        free[d], start = False, int(ends[d])
    return stages


def _tables(problem: Problem) -> tuple[Any, ...]:
    """What a walk reads: `w`, work, memory, what is alive at each cut, and the wires."""
    order, devices = late_order(problem), range(problem.num_devices)
    time = problem.time_s[:, order]
    runs = np.where(np.isfinite(time), time, 1e30)
    least = time.min(axis=0)
    wires = np.zeros((2, len(devices), len(devices)))
    for d in devices:
        for e in devices:
            wires[:, d, e] = problem.wire(d, e) if d != e else (0.0, 0.0)
    copies, saved = problem.parameter_bytes[order], problem.saved_bytes[order]
    live = [problem.need_bytes(p)[order] - copies for p in range(1, problem.num_devices + 1)]
    times = [float(x.sum() / max(saved.sum(), 1e-300)) for x in live]
    return (
        _running(runs),
        _running(least),
        _running(copies),
        _running(saved),
        np.array(times),
        np.minimum(problem.memory_limit, 1e300) - problem.peak_bytes.max(),
        np.array(alive(problem, order)),
        wires,
    )


def _running(of_units: Floats) -> Floats:
    """Sums of the units before each cut, along the last axis."""
    zero = np.zeros((*of_units.shape[:-1], 1))
    sums: Floats = np.concatenate([zero, np.cumsum(of_units, axis=-1)], axis=-1)
    return sums


@njit(cache=True)
def _move(d: int, e: int, i: int, crossing: Any, wires: Any) -> float:
    """Seconds to move what crosses at cut i from device d to e, and its gradients back."""
    there = wires[0, d, e] * crossing[2, i] + wires[1, d, e] * crossing[0, i]
    back = wires[0, e, d] * crossing[3, i] + wires[1, e, d] * crossing[1, i]
    return float(there + back)


@njit(cache=True)
def walk(first: int, devices: Any, starts: Any, got: Any, bottleneck: float, tables: Any) -> float:
    """Give each device from place `first` on as much as it can take; returns the work done."""
    w, work, copies, saved, live, limit, crossing, wires = tables
    n, num = w.shape[1] - 1, len(devices)
    here, received = starts[first], got[first]
    most = work[n] * (1 - 1e-12)  # what does not come to the end has not done all, even of nothing
    for k in range(first, num):
        d, kept = devices[k], live[num - k - 1]
        starts[k], got[k] = here, received
        time = bottleneck - received + w[d, here]
        room = limit[d] + copies[here] + kept * saved[here]
        low, high = here, n
        while low < high:  # the furthest end that time without sending, and memory, allow
            middle = (low + high + 1) // 2
            if w[d, middle] <= time and copies[middle] + kept * saved[middle] <= room:
                low = middle
            else:
                high = middle - 1
        if low == n:
            starts[k + 1 :] = n
            return float(work[n])
        if k + 1 == num:
            fits = copies[low + 1] + kept * saved[low + 1] <= room
            part = (time - w[d, low]) / (w[d, low + 1] - w[d, low]) if fits else 0.0
            return float(min(most, work[low] + max(part, 0.0) * (work[low + 1] - work[low])))
        e = devices[k + 1]
        best, end, sent = math.inf, here, 0.0
        for j in range(low, here, -1):
            move = _move(d, e, j, crossing, wires)
            if w[d, j] + move <= time and move < bottleneck and move + w[e, low] - w[e, j] < best:
                best, end, sent = move + w[e, low] - w[e, j], j, move
            if w[e, low] - w[e, j] > best:  # what is left over alone is more by now
                break
        if end == here:
            return float(min(most, work[here]))
        here, received = end, sent
    return float(min(most, work[here]))


@njit(cache=True)
def anneal(
    devices: Any,
    starts: Any,
    got: Any,
    bottleneck: float,
    heat: float,
    rounds: int,
    seed: int,
    tables: Any,
) -> bool:
    """Change the order of devices, by swaps and moves, until a walk comes to the end."""
    np.random.seed(seed)
    work, num = tables[1][-1], len(devices)
    starts[0], got[0] = 0, 0.0
    reached = walk(0, devices, starts, got, bottleneck, tables)
    trial, starts_then, got_then = devices.copy(), starts.copy(), got.copy()
    for _ in range(rounds):
        if reached >= work:
            return True
        a, b = np.random.randint(num), np.random.randint(num)
        change(trial, a, b)
        first = max(0, min(a, b) - 1)  # the stage before looks at the next device, too
        starts_then[first], got_then[first] = starts[first], got[first]
        there = walk(first, trial, starts_then, got_then, bottleneck, tables)
        lost = (reached - there) / work
        if lost <= 0 or np.random.random() < math.exp(-lost / heat):
            devices[:], reached = trial, there
            starts[first:], got[first:] = starts_then[first:], got_then[first:]
        else:
            trial[:] = devices
    return bool(reached >= work)


@njit(cache=True)
def change(devices: Any, a: int, b: int) -> None:
    """Swap the devices at two places, move one to the other's place, or turn a short run round."""
    kind = np.random.random()
    if kind < 0.4:
        devices[a], devices[b] = devices[b], devices[a]
    elif kind < 0.8:
        moved, step = devices[a], 1 if b > a else -1
        for x in range(a, b, step):
            devices[x] = devices[x + step]
        devices[b] = moved
    else:
        low, high = min(a, b), min(max(a, b), min(a, b) + LONGEST_TURN)
        while low < high:
            devices[low], devices[high] = devices[high], devices[low]
            low, high = low + 1, high - 1
