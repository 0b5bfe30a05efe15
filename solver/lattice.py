"""The exact method over ideals, in `relay`: every plan of a graph is a chain of them.

At a fixed bottleneck T the question is only feasibility. It is worked out from the last stage to
the first by `labels.py`, over states (devices used from a stage on, that stage's kind of device) and
ideals (what is done before it). A stage's time is the sum of its units', so no pairs of ideals are
looked at: a label passes from an ideal to those with one unit less, and at any ideal the next
device's stage may begin. Bisection on T finds the optimum; a T without a plan is a lower bound.

Units that would multiply the ideals are put aside (`aside.py`). They count as work that may go
anywhere, which can only lower the bound, and a plan gives each a place afterwards.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from skyfx.solver.aside import narrowed
from skyfx.solver.bounds import Bound, largest_unit
from skyfx.solver.ideals import Ideals
from skyfx.solver.labels import OVERFLOW, fill, trace
from skyfx.solver.method import PROVEN, Answer, Task
from skyfx.solver.problem import Floats, Problem, UnitPlacement
from skyfx.solver.states import States

__all__: list[str] = ["lattice"]

MAX_CELLS = 6_000_000
"""States times ideals."""

MAX_IDEALS = 100_000
MAX_STATES = 20_000
POOL = 8_000_000
"""Labels; each is 28 bytes."""

NEAR = 0.003
"""Distance of plan and bound from which on to look just below the plan."""

CANDIDATES = 16
"""Plans that are looked at for each T; they differ in how well they place what was put aside."""

WIDTH = 8
"""Labels of a cell."""

UNDER = 1 - 1e-9
"""Sums of many floats differ in their last digits: a bound stays this far below."""


def lattice(task: Task) -> Iterator[Answer]:
    """Find the best plan of all, as far as units need not be put aside."""
    problem = task.problem
    if problem.assumptions.communication != "relay":
        yield Answer(says="only for relay")
        return
    states = States.number(problem)
    at_most = min(MAX_IDEALS, MAX_CELLS // states)
    found = narrowed(problem, at_most) if states <= MAX_STATES else None
    if found is None:
        yield Answer(says=f"too many ideals, with {states} states of devices")
        return
    ideals, aside = found
    says = f"{len(ideals)} ideals x {states} states of devices, {len(aside)} units put aside"
    program = Program(problem, ideals, States(problem), tuple(aside))
    yield from _search(task, program, says)


def _search(task: Task, program: "Program", says: str) -> Iterator[Answer]:
    """Halve the interval between what is proven impossible and what a plan reaches."""
    assumptions = task.problem.assumptions
    latency_s, rounds = 0.0, 1
    if assumptions.objective != "throughput" or task.best is None:
        shortest = program.shortest()
        if shortest is None:
            yield Answer(infeasible="no order of the devices can run all units", says=says)
            return
        yield Answer(stages=shortest[1], says=says)
        if assumptions.objective != "throughput":
            latency_s, rounds = shortest[0] * UNDER, assumptions.microbatches - 1
        if assumptions.objective == "latency":
            yield Answer(bound=Bound(latency_s, "ideals"), says=says)
            return
    low, high = program.low_s(task), program.high_s
    if task.best is not None:
        high = min(high, task.bottleneck_s)
    reached = True  # whether a plan reaches `high`, not only one without what was put aside
    while high > low * (1 + PROVEN):
        # Just below the best plan there may be none: then all is proven at once.
        below = reached and high < low * (1 + NEAR)
        middle = high * (1 - PROVEN / 2) if below else (low + high) / 2
        stages = program.plan(middle)
        if stages is None:
            low = middle * UNDER
            yield Answer(bound=Bound(latency_s + rounds * low, "ideals"), says=says)
            continue
        cost = task.problem.cost(stages)
        reached = cost.bottleneck_s < high and task.problem.fits(cost, stages) and not below
        high = min(middle, cost.bottleneck_s) if reached else middle
        yield Answer(stages=stages, says=says)


@dataclass
class Program:
    """The tables of the dynamic program, ready for any T."""

    problem: Problem
    ideals: Ideals
    states: States
    aside: tuple[int, ...]
    high_s: float = field(init=False, default=math.inf)
    """The bottleneck of a plan that is known to exist."""

    def __post_init__(self) -> None:
        shape = (len(self.states.all), len(self.ideals))
        self._cells = (np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32))
        self._pool = (*(np.empty(POOL) for _ in range(3)), np.empty(POOL, dtype=np.int32))

    def low_s(self, task: Task) -> float:
        """A bottleneck that no plan undercuts."""
        throughput = task.problem.assumptions.objective == "throughput"
        return (task.bound if throughput else largest_unit(task.problem)).value

    def plan(self, bottleneck: float) -> UnitPlacement | None:
        """A plan with no stage above `bottleneck`, but for units put aside; None if none exists."""
        weight = self._weight
        aside = float((weight[:, None] * self.states.time_s[:, self.aside]).min(axis=0).sum())
        everything = float((weight * [len(group) for group in self.states.groups]).sum())
        limit = bottleneck / UNDER
        full = self.problem.assumptions.overlap == "full"
        return self._plan((limit, (everything * limit - aside) / UNDER, full, False), weight)

    def shortest(self) -> tuple[float, UnitPlacement] | None:
        """The least latency that any plan can have, and a plan that has it."""
        stages = self._plan((math.inf, math.inf, False, True), np.ones(len(self.states.groups)))
        if stages is None:
            return None
        self.high_s = self.problem.cost(stages).bottleneck_s
        return self._value + float(self.states.time_s[:, self.aside].min(axis=0).sum()), stages

    def _plan(self, rules: tuple[float, float, bool, bool], weight: Floats) -> UnitPlacement | None:
        states, width = self.states, WIDTH
        tables = (states.group, states.position, *states.following)
        costs, covers = self._costs(rules[0], weight), self.ideals.covers
        labels, num = np.empty(CANDIDATES, dtype=np.int64), OVERFLOW
        while num == OVERFLOW:
            num = fill((*rules, width), tables, covers, costs, self._pool, self._cells, labels)
            width //= 2
        path = np.empty((len(self.ideals) + len(tables), 2), dtype=np.int64)
        found = []
        for label in labels[:num]:
            length = trace(label, tables, covers, self._pool, self._cells, path)
            stages = self._placement(path[:length].tolist(), rules[0])
            found.append((self.problem.cost(stages).objective_value, stages))
        if not found:
            return None
        self._value = float(self._pool[0][labels[0]])
        return min(found, key=lambda plan: plan[0])[1]

    def _placement(self, path: list[list[int]], bottleneck: float) -> UnitPlacement:
        """The plan that goes through these cells."""
        closing = [x for x, y in enumerate(path) if [*path, [-1]][x + 1][0] != y[0]]
        states, ends = zip(*(path[x] for x in closing), strict=True)
        groups = [self.states.all[state][1] for state in states]
        moves = [
            float(self._move_s[g, h, i])
            for g, h, i in zip(groups, groups[1:], ends, strict=False)
        ]
        moving = [a + b for a, b in zip([0.0, *moves], [*moves, 0.0], strict=True)]
        if self.problem.assumptions.overlap == "full":
            moving = [0.0] * len(groups)
        stages = zip(self.states.devices(states), [0, *ends], ends, strict=False)
        return self.ideals.placement(stages, moving, bottleneck)

    def _costs(self, bottleneck: float, weight: Floats) -> tuple[Any, ...]:
        states, time = self.states, self.states.time_s
        least = (weight[:, None] * time).min(axis=0)
        rest = np.array([least[inside].sum() for inside in self.ideals.holds.T])
        free = [len(group) for group in states.groups]
        room = [
            sum(w * (f - c) for w, f, c in zip(weight, free, counts, strict=True)) + weight[g]
            for counts, g in states.all
        ]
        scale = bottleneck if math.isfinite(bottleneck) else 1e300
        need, limit = self._memory
        return time, self._move_s, need, limit, weight, rest, np.array(room) * scale / UNDER

    @cached_property
    def _memory(self) -> tuple[Floats, Floats]:
        """Bytes of each unit at each position from the end, `(D + 1, n)`, and each group's limit."""
        problem = self.problem
        limit = problem.memory_limit[[group[0] for group in self.states.groups]]
        need = np.zeros((problem.num_devices + 1, problem.num_units))
        if np.isfinite(limit).any():
            for position in range(1, problem.num_devices + 1):
                need[position] = problem.need_bytes(position)
        if (need.sum(axis=1).max() <= limit).all():
            need[:] = 0.0  # nothing binds, so labels need not differ in it
        return need, limit / UNDER

    @cached_property
    def _weight(self) -> Floats:
        """A price of each group's time, `(G,)`: its speed over all units."""
        time = self.states.time_s
        work = np.where(np.isfinite(time), time, 0.0).sum(axis=1)
        weight: Floats = np.where(work > 0, 1.0 / np.where(work > 0, work, 1.0), 1.0)
        return weight

    @cached_property
    def _move_s(self) -> Floats:
        """Seconds to move what crosses behind each ideal, `(G, G, N)`."""
        latency, per_byte, back_latency, back_per_byte = self.states.wires[..., None]
        forward, backward, some, some_back = self.ideals.crossing
        move: Floats = latency * some + per_byte * forward
        move += back_latency * some_back + back_per_byte * backward
        return move
