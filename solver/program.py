"""The DP over ideals and devices, ready for any bottleneck T: its tables, and plans read from them."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from skyfx.solver.bounds import largest_unit
from skyfx.solver.ideals import Ideals
from skyfx.solver.labels import OVERFLOW, fill, trace
from skyfx.solver.method import Task
from skyfx.solver.problem import Floats, Problem, UnitPlacement
from skyfx.solver.states import States

__all__: list[str] = ["UNDER", "Program"]

POOL = 8_000_000
"""Labels; each is 28 bytes."""

CANDIDATES = 16
"""Plans that are looked at for each T; they differ in how well they place what was put aside."""

WIDTH = 64
"""Labels of a cell at the most; fewer where there are many cells."""

UNDER = 1 - 1e-9
"""Sums of many floats differ in their last digits: a bound stays this far below."""


@dataclass
class Program:
    """The tables of the dynamic program, ready for any T."""

    problem: Problem
    ideals: Ideals
    states: States
    aside: tuple[int, ...] = ()
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
        weight = self._weight if self.aside else np.zeros(len(self._weight))
        time = self.states.time_s[:, self.aside]
        aside = float((weight[:, None] * time).min(axis=0).sum()) * UNDER
        full = self.problem.assumptions.overlap == "full"
        return self._plan((bottleneck / UNDER, aside, full, False), weight)

    def shortest(self) -> tuple[float, UnitPlacement] | None:
        """The least latency that any plan can have, and a plan that has it."""
        stages = self._plan((math.inf, -math.inf, False, True), np.ones(len(self.states.groups)))
        if stages is None:
            return None
        self.high_s = self.problem.cost(stages).bottleneck_s
        return self._value + float(self.states.time_s[:, self.aside].min(axis=0).sum()), stages

    def _plan(self, rules: tuple[float, float, bool, bool], weight: Floats) -> UnitPlacement | None:
        states, width = self.states, min(WIDTH, max(8, POOL // self._cells[0].size))
        tables = (states.group, states.position, *states.following)
        costs, covers = self._costs(rules[0], weight), self.ideals.covers
        labels, num = np.empty(CANDIDATES, dtype=np.int64), OVERFLOW
        while num == OVERFLOW:
            num = fill((*rules, width), tables, covers, costs, self._pool, self._cells, labels)
            width //= 2
        path = np.empty((len(self.ideals) + self.problem.num_devices, 2), dtype=np.int64)
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
        least = (self._weight[:, None] * time).min(axis=0)
        rest = np.array([least[inside].sum() for inside in self.ideals.holds.T])
        free, price = [len(group) for group in states.groups], self._weight
        room = [
            sum(w * (f - c) for w, f, c in zip(price, free, counts, strict=True)) + price[g]
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
