"""Plans for many devices: simulated annealing over the order of devices, along one order of units.

At a fixed bottleneck T an order of devices is *walked*: each device in turn takes units as far as T
and its memory allow, with an eye on the next: of the ends near the furthest it takes the one after
which the next device loses least to receiving. What counts is how much of the work is done when the
devices are used up. If all is done, T falls to just below that plan's bottleneck, and the search
goes on from there.

Legend: `w[d, i]` seconds of the units before i on device d; `move[., i]` what crosses at cut i.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import njit

from skyfx.solver.interval import alive
from skyfx.solver.method import Answer, Task
from skyfx.solver.orders import late_order
from skyfx.solver.problem import Floats, Problem, UnitPlacement

__all__: list[str] = ["annealing"]

ROUNDS = 400
"""Tries between two looks at the clock."""

PATIENCE = 1500
"""So many rounds without a better plan end the search; with few devices their number squared."""

STEP = 0.9995
"""How far below the best plan the next is looked for."""

WINDOW = 48
"""Ends of a stage that are looked at."""


def annealing(task: Task) -> Iterator[Answer]:
    """Find plans of many devices, in relay, better and better until nothing comes any more."""
    problem = task.problem
    if problem.assumptions.communication != "relay" or problem.num_devices < 2:
        yield Answer(says="only for relay and several devices")
        return
    tables, order = _tables(problem), late_order(problem)
    if not tables[1][-1] > 0:
        yield Answer(says="nothing takes any time")
        return
    devices = _first_order(problem)
    rng = np.random.default_rng(task.limits.seed)
    bottleneck = min(task.bottleneck_s * STEP, float(tables[0][:, -1].max()) * 2)
    starts = np.zeros(problem.num_devices + 1, dtype=np.int64)
    tries, idle, found = 0, 0, 0
    heat = 0.01
    patience = min(PATIENCE, problem.num_devices**2)
    while idle < patience and bottleneck > 0 and task.limits.left_s > 0.5:
        tries, idle = tries + ROUNDS, idle + 1
        seed, heat = int(rng.integers(2**31)), max(heat * 0.97, 1e-4)
        if not anneal(devices, starts, bottleneck, heat, ROUNDS, seed, tables):
            continue
        stages = _placement(order, devices, starts)
        cost = problem.cost(stages)
        bottleneck = min(bottleneck, cost.bottleneck_s) * STEP
        idle, found = 0, found + 1
        yield Answer(stages=stages, says=f"{tries} orders of devices, {found} times better")


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
    room = np.minimum(problem.memory_limit, 1e300) * np.maximum(work, 1e-300)
    return np.argsort(-room, kind="stable").astype(np.int64)


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
def walk(devices: Any, starts: Any, bottleneck: float, tables: Any) -> int:
    """Give each device in turn as much as it can take; returns the cut that is reached."""
    w, _, copies, saved, live, limit, crossing, wires = tables
    n, num = w.shape[1] - 1, len(devices)
    here, received = 0, 0.0
    starts[:] = n
    starts[0] = 0
    for k in range(num):
        d = devices[k]
        low, high = here, n
        while low < high:  # the furthest end that time without sending, and memory, allow
            middle = (low + high + 1) // 2
            need = copies[middle] - copies[here] + live[num - k - 1] * (saved[middle] - saved[here])
            if received + w[d, middle] - w[d, here] <= bottleneck and need <= limit[d]:
                low = middle
            else:
                high = middle - 1
        if low == n:
            return int(n)
        if k + 1 == num:
            return int(low)
        e = devices[k + 1]
        best, end, sent = math.inf, here, 0.0
        for j in range(low, here, -1):
            move = _move(d, e, j, crossing, wires)
            if received + w[d, j] - w[d, here] + move <= bottleneck and move < bottleneck:
                value = move + w[e, low] - w[e, j]
                if value < best:
                    best, end, sent = value, j, move
                if low - j > WINDOW:
                    break
        if end == here:
            return int(here)
        here, received = end, sent
        starts[k + 1] = here
    return int(here)


@njit(cache=True)
def anneal(
    devices: Any, starts: Any, bottleneck: float, heat: float, rounds: int, seed: int, tables: Any
) -> bool:
    """Change the order of devices, by swaps and moves, until a walk comes to the end."""
    np.random.seed(seed)
    work = tables[1]
    reached = walk(devices, starts, bottleneck, tables)
    n, num = len(work) - 1, len(devices)
    trial = devices.copy()
    for _ in range(rounds):
        if reached == n:
            return True
        trial[:] = devices
        a, b = np.random.randint(num), np.random.randint(num)
        if np.random.random() < 0.5:
            trial[a], trial[b] = trial[b], trial[a]
        else:
            moved = trial[a]
            step = 1 if b > a else -1
            for x in range(a, b, step):
                trial[x] = trial[x + step]
            trial[b] = moved
        there = walk(trial, starts, bottleneck, tables)
        lost = (work[reached] - work[there]) / work[n]
        if lost <= 0 or np.random.random() < math.exp(-lost / heat):
            devices[:], reached = trial, there
    return bool(walk(devices, starts, bottleneck, tables) == n)
