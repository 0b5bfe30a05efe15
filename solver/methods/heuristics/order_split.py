"""The best cuts for one order of the devices, each of which may be left out or only relay.

order of the units     a b c | d e f g | h i j
order of the devices     p   |    r    |   s        q has nothing to do

Every stage is an interval of one order of the units. A label stands at a device and a cut j: the
least latency of what lies before j, the last of it on that device. It comes from the label of any
device before it at a cut i, by the move at i and the units between. Stages take no longer than T.

Where stages take moves beside computing (`overlap = full`), all stages of T's plans are found. Else
the label that has the least latency may have the longer last stage, and hide a plan.

How much a stage keeps depends on how many come behind it; here, as if no device were left out.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from skyfx.solver.kernels import kernel
from skyfx.solver.methods.bisection import ORDER_SPLIT, Bisection
from skyfx.solver.methods.bounds.simple_bounds import bottleneck_bound
from skyfx.solver.methods.heuristics.annealing import Assessed, Cooling, anneal
from skyfx.solver.methods.limits import TimeUpError
from skyfx.solver.methods.method import Candidate, MethodUpdate, SearchState
from skyfx.solver.problem.coarsening import MAX_UNITS
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.interval_tables import interval_tables, move
from skyfx.solver.problem.linear_extensions import depth_first_extension
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import BOUND_SAFETY

HOT, COLD, MOVES = 0.01, 1e-4, 5000
"""Temperatures in parts of the objective, and how many orders are tried."""

PART = 0.6
"""Of the time that is left, for orders."""

OTHER_T, SPREAD = 0.3, 0.05
"""How often T changes, and by about what part."""

Order = tuple[int, ...]


class OrderSplitter:
    """The tables of a problem's units in one order."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.order = problem, depth_first_extension(problem)
        of = interval_tables(problem, self.order)
        self.of = of._replace(limit=of.limit - problem.peak_bytes.max())
        self._full = problem.assumptions.overlap == "full"

    def plan(self, devices: Sequence[int], bottleneck: float = math.inf) -> UnitPlacement | None:
        """The plan of least latency within T; None where there is none.

        Args:
            devices: in pipeline order, each of them once; some may stay without units.
            bottleneck: T.
        """
        rules = (bottleneck / BOUND_SAFETY, self._full)
        latency, start, before = cheapest(np.array(devices), *rules, self.of)
        k = int(latency[:, -1].argmin())
        if not math.isfinite(latency[k, -1]):
            return None
        stages, j = [], len(self.order)
        while k >= 0:
            i = int(start[k, j])
            stages.append((int(devices[k]), sorted(self.order[i:j])))
            k, j = int(before[k, j]), i
        return stages[::-1]


def order_split(task: SearchState) -> Iterator[MethodUpdate]:
    """Find better cuts for the best plan's order of many devices, and for orders near it."""
    problem = task.problem
    search = _OrderSearch(task)
    for devices in search.orders():
        with suppress(TimeUpError):
            search.improve(devices)
        yield search.answer()
    few = problem.num_units <= MAX_UNITS
    if few and problem.assumptions.objective != "throughput" and search.best is not None:
        with suppress(TimeUpError):
            search.anneal()
        yield search.answer()


class _OrderSearch:
    """The best plan so far, and how it is come by from an order of the devices."""

    def __init__(self, task: SearchState) -> None:
        self.task, self.best, self.tried = task, task.incumbent, 0
        self.cutter = OrderSplitter(task.problem)
        self.random = np.random.default_rng(task.limits.seed)

    def answer(self) -> MethodUpdate:
        """What has been found."""
        remark = f"{self.tried} orders of the devices and bottlenecks"
        return MethodUpdate(stages=self.best.stages if self.best else None, remark=remark)

    def orders(self) -> Iterator[Order]:
        """Those to begin with: the fastest first, and the best plan's with the others behind."""
        work = np.minimum(self.task.problem.time_s, 1e30).sum(axis=1)
        by_speed = [int(d) for d in np.argsort(work, kind="stable")]
        if self.task.problem.assumptions.objective != "throughput":
            yield tuple(by_speed)
        if self.best is not None:
            used = [d for d, _ in self.best.stages]
            yield (*used, *(d for d in by_speed if d not in used))

    def improve(self, devices: Order) -> None:
        """Find the best plan of an order."""
        objective = self.task.problem.assumptions.objective
        if objective == "latency":
            self.consider(devices, math.inf)
        elif objective == "step":
            self._best_step(devices)
        else:
            self._least_bottleneck(devices)

    def consider(self, devices: Sequence[int], bottleneck: float) -> Candidate | None:
        """The plan of an order within T; the best is kept.

        Raises:
            TimeUpError: no time is left.
        """
        self.task.limits.check()
        self.tried += 1
        stages = self.cutter.plan(devices, bottleneck)
        found = Candidate.of(self.task.problem, stages)
        if found is not None and (self.best is None or found.value < self.best.value):
            self.best = found
        return found

    def anneal(self) -> None:
        """Go from order to order, and from T to T where a step is asked for."""
        assert self.best is not None
        unit, limits = self.best.value or 1.0, self.task.limits

        def assess(state: tuple[Order, float]) -> Assessed[None]:
            found = self.consider(*state)  # which keeps the best
            return Assessed(math.inf if found is None else found.value / unit)

        *_, devices = self.orders()
        latency = self.task.problem.assumptions.objective == "latency"
        within = math.inf if latency else self.best.cost.bottleneck_s
        deadline = limits.deadline - (1 - PART) * limits.left_s
        cooling = Cooling(MOVES, HOT, COLD, deadline)
        anneal((devices, within), self._near, assess, cooling, self.random)

    def _near(self, state: tuple[Order, float]) -> tuple[Order, float]:
        """Two devices change places, one goes elsewhere, or T changes."""
        devices, bottleneck = list(state[0]), state[1]
        if math.isfinite(bottleneck) and self.random.random() < OTHER_T:
            return state[0], bottleneck * math.exp(SPREAD * self.random.standard_normal())
        j, k = (int(x) for x in self.random.integers(len(devices), size=2))
        if self.random.random() < 1 / 2:
            devices[j], devices[k] = devices[k], devices[j]
        else:
            devices.insert(k, devices.pop(j))
        return tuple(devices), bottleneck

    def _best_step(self, devices: Order) -> None:
        """From the least T on, larger ones, as long as one may still be better."""
        low = self._least_bottleneck(devices)
        waits = self.task.problem.assumptions.microbatches - 1
        latency = self.consider(devices, math.inf)
        if latency is None or not math.isfinite(low):
            return
        while self.best is None or latency.cost.latency_s + waits * low < self.best.value:
            self.consider(devices, low)
            low *= 1 + SPREAD

    def _least_bottleneck(self, devices: Order) -> float:
        """The least T of an order; infinite where it has no plan."""
        first = self.consider(devices, math.inf)
        if first is None:
            return math.inf
        high = first.cost.bottleneck_s
        if self.task.problem.assumptions.objective == "throughput":
            high = min(high, self.task.bottleneck_s)
        search = Bisection(bottleneck_bound(self.task.problem).value, high, ORDER_SPLIT)
        for bottleneck in search:
            found = self.consider(devices, bottleneck)
            if found is None:
                search.low = bottleneck
            else:
                search.keep(bottleneck, found.cost.bottleneck_s)
        return search.high


@kernel()
def cheapest(devices: Any, bottleneck: float, full: bool, of: Any) -> tuple[Any, Any, Any]:
    """The labels of all devices at all cuts.

    Args:
        devices: in pipeline order, `(K,)`.
        bottleneck: T.
        full: whether moves overlap with computing.
        of: `IntervalTables`.

    Returns:
        The latency, where the stage begins, and the stage before it or -1, each `(K, n + 1)`.
    """
    num, n = len(devices), of.prefix_time.shape[1] - 1
    latency, busy = np.full((num, n + 1), math.inf), np.zeros((num, n + 1))
    start = np.zeros((num, n + 1), dtype=np.int64)
    before = np.zeros((num, n + 1), dtype=np.int64)
    for k in range(num):
        d = devices[k]
        w, need = of.prefix_time[d], of.need[min(len(of.need), num - k) - 1]
        limit = of.limit[d] / BOUND_SAFETY
        for i in range(n):
            came, received, last = (0.0 if i == 0 else math.inf), 0.0, -1
            for q in range(k if i > 0 else 0):
                if latency[q, i] < came:
                    moved = move(devices[q], d, i, of.crossing, of.wires)
                    taken = moved if full else busy[q, i] + moved
                    if taken <= bottleneck and latency[q, i] + moved < came:
                        came, received, last = latency[q, i] + moved, moved, q
            if came == math.inf:
                continue
            opened = 0.0 if full else received
            for j in range(max(i, 1), n + 1):  # from i on: a stage may only pass values on
                took = w[j] - w[i]
                if opened + took > bottleneck or need[j] - need[i] > limit:
                    break
                if came + took < latency[k, j]:
                    latency[k, j], busy[k, j] = came + took, opened + took
                    start[k, j], before[k, j] = i, last
    return latency, start, before
