"""A lower bound for chains: prices on units that no set of intervals can earn.

Let prices `p[i] >= 0` add up to 1 over the units of a chain. In a plan with bottleneck T each
device runs an interval that takes it no longer than T, and all intervals together earn 1. So if

    sum over d of best[d] < 1,   best[d] = the highest price of an interval that d runs within T,

there is no such plan, whatever the prices: T is a lower bound. It is the dual of choosing intervals
by column generation. A device is granted the fastest wires that it has. What only one device can
have is granted once, to the one that gains most by it: to begin the chain and receive nothing, to
end it and send nothing, and each of the last positions, where fewer micro-batches are kept; these
go to different devices. Prices are improved by multiplicative weights: what many devices would
choose becomes cheaper.

It holds for chains alone. In a general graph a stage need not be an interval of one order.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import njit

from skyfx.solver.bounds import Bound
from skyfx.solver.interval import alive
from skyfx.solver.method import UNDER, Answer, Task
from skyfx.solver.problem import Floats, Problem

__all__: list[str] = ["dual"]

ROUNDS = 60
"""Prices that are tried."""


def dual(task: Task) -> Iterator[Answer]:
    """Bound the bottleneck of a chain."""
    problem = task.problem
    if fault := _fault(problem):
        yield Answer(says=fault)
        return
    tables, n = _tables(problem), problem.num_units
    price = _first_prices(problem)
    low, high = task.bound.value, task.bottleneck_s
    if not math.isfinite(high):
        high = float(tables[0][:, -1].max()) + 2 * float(tables[1].max() + tables[2].max())
    best = low
    for x in range(ROUNDS):
        bound, chosen = _bound(price, best, high, tables)
        if bound > best:
            best = bound
            yield Answer(bound=Bound(best * UNDER, "prices of intervals"), says=f"{x + 1} prices")
        if task.limits.left_s <= 0:
            return
        demand = chosen / max(chosen.mean(), 1e-300)
        price = price * np.exp(-0.5 / math.sqrt(x + 1) * (demand - 1) / max(demand.max(), 1.0))
        price = np.maximum(price, 1e-12 / n)
        price /= price.sum()


def _fault(problem: Problem) -> str:
    """Why the method has nothing to say; empty where it has."""
    assumptions = problem.assumptions
    if assumptions.objective != "throughput" or assumptions.communication != "relay":
        return "only for throughput in relay"
    read = set(problem.edges)
    if not all((i - 1, i) in read for i in range(1, problem.num_units)):
        return "only for chains"
    return ""


def _first_prices(problem: Problem) -> Floats:
    """Each unit's part of all work, on the devices' average."""
    time = np.where(np.isfinite(problem.time_s), problem.time_s, 0.0)
    share = (time / np.maximum(time.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
    share = np.maximum(share, 1e-12 / len(share))
    prices: Floats = share / share.sum()
    return prices


def _bound(price: Floats, low: float, high: float, tables: Any) -> tuple[float, Floats]:
    """The largest T that these prices rule out, and how many devices would choose each unit."""
    earned = np.concatenate([[0.0], np.cumsum(price)])
    counts = np.zeros(len(price) + 1)
    ruled_out = low
    if best_intervals(earned, low, counts, tables) >= UNDER:
        return 0.0, np.cumsum(counts)[:-1]
    while high > ruled_out * (1 + 1e-5):
        middle = (ruled_out + high) / 2
        if best_intervals(earned, middle, counts, tables) < UNDER:
            ruled_out = middle
        else:
            high = middle
    best_intervals(earned, high, counts, tables)
    return ruled_out, np.cumsum(counts)[:-1]


def _tables(problem: Problem) -> tuple[Any, ...]:
    """Running times, cheapest receiving and sending, running memory, and limits."""
    devices, n = range(problem.num_devices), problem.num_units
    time = np.where(np.isfinite(problem.time_s), problem.time_s, 1e30)
    running = np.concatenate([np.zeros((len(devices), 1)), np.cumsum(time, axis=1)], axis=1)
    forward, backward, some, some_back = alive(problem)
    receive, send = np.zeros((len(devices), n + 1)), np.zeros((len(devices), n + 1))
    full = problem.assumptions.overlap == "full"
    for d in devices if not full else ():
        others = [e for e in devices if e != d]
        for table, ways in ((receive, [(e, d) for e in others]), (send, [(d, e) for e in others])):
            if ways:
                there = np.array([problem.wire(*way) for way in ways]).min(axis=0)
                back = np.array([problem.wire(*way[::-1]) for way in ways]).min(axis=0)
                table[d] = there[0] * some + there[1] * forward
                table[d] += back[0] * some_back + back[1] * backward
    positions = range(1, min(problem.assumptions.microbatches, problem.num_devices) + 1)
    needs = [np.concatenate([[0.0], np.cumsum(problem.need_bytes(p))]) for p in positions]
    need = np.array([needs[0]] if np.array_equal(needs[0], needs[-1]) else needs)
    limit = np.minimum(problem.memory_limit, 1e300) / UNDER
    return running, receive, send, need, limit


@njit(cache=True)
def best_intervals(earned: Any, bottleneck: float, counts: Any, tables: Any) -> float:
    """What all devices can earn within T; `counts` gets +1 at a choice's start, -1 at its end."""
    need, limit = tables[3], tables[4]
    n, last = len(earned) - 1, len(need) - 1
    counts[:] = 0.0
    total, first_gain = 0.0, 0.0
    gains = np.zeros((max(last, 1), len(limit)))
    for d in range(len(limit)):
        best, start, end = _best(d, 1, n - 1, last, earned, bottleneck, tables)
        total += best
        counts[start] += 1
        counts[end] -= 1
        begins = _begins(d, earned, bottleneck, tables)
        if begins >= earned[n]:
            return math.inf
        first_gain = max(first_gain, begins - best)
        gains[0, d] = max(0.0, _ends(d, earned, bottleneck, tables) - best)
        for p in range(1, last):
            gains[p, d] = _best(d, 1, n - 1, p, earned, bottleneck, tables)[0] - best
    return float(total + first_gain + most_gained(gains))


@njit(cache=True)
def most_gained(gains: Any) -> float:
    """The most that a choice of different devices for the positions gains, of `gains[p, d]`.

    The assignment problem, by shortest augmenting paths (Kuhn 1955, Jonker and Volgenant 1987).
    Where there are more positions than devices, each is granted its own best.
    """
    rows, columns = gains.shape
    if rows > columns:
        return float(sum([gains[p].max() for p in range(rows)]))
    u, v = np.zeros(rows + 1), np.zeros(columns + 1)
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
    return float(sum([gains[row_of[d] - 1, d - 1] for d in range(1, columns + 1) if row_of[d]]))


@njit(cache=True)
def _best(
    d: int, first: int, last: int, p: int, earned: Any, bottleneck: float, tables: Any
) -> tuple[float, int, int]:
    """The interval `[start, end)` between two cuts that earns most on device d at position p."""
    running, receive, send, need, limit = tables
    best, start, end, furthest = 0.0, first, first, first
    for i in range(first, last):
        furthest = max(furthest, i)
        time = bottleneck - receive[d, i] + running[d, i]
        room = limit[d] + need[p, i]
        # The furthest end for compute and memory alone; receiving differs from start to start.
        while furthest > i and (running[d, furthest] > time or need[p, furthest] > room):
            furthest -= 1
        while (
            furthest < last and running[d, furthest + 1] <= time and need[p, furthest + 1] <= room
        ):
            furthest += 1
        j = furthest
        while j > i and running[d, j] + send[d, j] > time:
            j -= 1
        if earned[j] - earned[i] > best:
            best, start, end = earned[j] - earned[i], i, j
    return best, start, end


@njit(cache=True)
def _begins(d: int, earned: Any, bottleneck: float, tables: Any) -> float:
    """What device d earns at most from the first unit on, receiving nothing."""
    running, _, send, need, limit = tables
    n = len(earned) - 1
    for j in range(n, 0, -1):
        sent = send[d, j] if j < n else 0.0
        if need[0, j] <= limit[d] and running[d, j] + sent <= bottleneck:
            return float(earned[j])
    return 0.0


@njit(cache=True)
def _ends(d: int, earned: Any, bottleneck: float, tables: Any) -> float:
    """What device d earns at most up to the last unit, sending nothing."""
    running, receive, _, need, limit = tables
    n = len(earned) - 1
    for i in range(1, n):
        fits = need[0, n] - need[0, i] <= limit[d]
        if fits and running[d, n] - running[d, i] + receive[d, i] <= bottleneck:
            return float(earned[n] - earned[i])
    return 0.0
