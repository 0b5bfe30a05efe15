"""The labels of all cells of (state, ideal), and the plans that they stand for.

`LabelTables` and `StepLabelTables` are built on it; they differ in their rules and costs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.costs.moves import move_s
from skyfx.solver.methods.exact.label_kernel import (
    OVERFLOW,
    SHORTEST,
    Cells,
    Costs,
    Labels,
    Rules,
    Tables,
    backtrack,
    complete_labels,
    propagate,
)
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.order_ideals import Ideals
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import SearchState
from skyfx.solver.problem.instance import Floats, UnitPlacement
from skyfx.solver.problem.linear_extensions import depth_first_extension, graph_order
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import BOUND_SAFETY

CANDIDATES = 16
"""Plans that are compared per T; they differ in how well they place the relaxed units."""

CELLS = 200_000
"""Cells that are filled between two looks at the clock."""

WIDTH = 64
"""Labels per cell at most, for a proof; fewer where there are many cells."""

UNBOUNDED = 1e300
"""A bottleneck that every plan keeps, unless a device cannot run a unit."""


def interval_lattices(task: SearchState) -> Iterator[tuple["LabelLattice", str]]:
    """Of each order of the units, the lattice of its intervals, and a remark on its size."""
    problem = task.problem
    for order in (depth_first_extension(problem), graph_order(problem)):
        ideals = Ideals.line(problem, order)
        remark = f"{len(ideals)} cuts x {task.features.num_states} states of devices"
        yield LabelLattice(problem, ideals, States(problem), limits=task.limits), remark


@dataclass
class LabelLattice:
    """The labels of a problem, ready for any T; `relaxed` units are not in `ideals`."""

    problem: Problem
    ideals: Ideals
    states: States
    relaxed: tuple[int, ...] = ()
    limits: Limits = field(default_factory=Limits)
    pool_size: int = 8_000_000
    """Labels; each is 28 bytes, of memory that is not taken before it is needed."""

    def __post_init__(self) -> None:
        shape = (len(self.states.all), len(self.ideals))
        self._cells = Cells(*np.zeros((2, *shape), dtype=np.int32))
        t, a, m = (np.empty(self.pool_size) for _ in range(3))
        self._pool = Labels(t, a, m, np.empty(self.pool_size, dtype=np.int32))
        self.most_labels = WIDTH if WIDTH * shape[0] * shape[1] < self.pool_size else 8

    def labels(self, rules: Rules, costs: Costs) -> NDArray[np.int64]:
        """The labels of the best whole plans, with fewer per cell where the pool is too small."""
        tables = self._tables(costs)
        rules = rules._replace(width=min(rules.width, self.most_labels))
        while not self._fill(rules, tables):
            self.most_labels = max(1, rules.width // 2)
            rules = rules._replace(width=self.most_labels)
        labels = np.empty(CANDIDATES, dtype=np.int64)
        return labels[: complete_labels(rules, tables, labels)]

    def _fill(self, rules: Rules, tables: Tables) -> bool:
        """Fill all cells, looking at the clock now and then; returns whether the pool sufficed."""
        num, used, step = len(self.states.all), 0, max(1, CELLS // len(self.ideals))
        for first in range(0, num, step):
            self.limits.check()
            used = propagate(first, min(first + step, num), used, rules, tables)
            if used == OVERFLOW:
                return False
        return True

    def best(
        self, labels: NDArray[np.int64], costs: Costs, bottleneck: float
    ) -> UnitPlacement | None:
        """Of the plans of these labels, the one with the least objective."""
        path = np.empty((len(self.ideals) + self.problem.num_devices, 2), dtype=np.int64)
        plans = []
        for label in labels:
            length = backtrack(label, self._tables(costs), path)
            plans.append(self._placement(path[:length].tolist(), bottleneck))
        return min(plans, key=lambda plan: self.problem.cost(plan).objective_value, default=None)

    def latency_s(self, labels: NDArray[np.int64]) -> float:
        """The least latency of these labels, without the relaxed units."""
        return float((self._pool.t[labels] + self._pool.a[labels]).min())

    def shortest(self) -> tuple[float, UnitPlacement] | None:
        """A lower bound of the latency, and a plan of about that latency; None without a plan."""
        rules = Rules(UNBOUNDED, -math.inf, False, SHORTEST, WIDTH, True)
        nothing = np.zeros(len(self.ideals))
        free = np.full(len(self.states.all), math.inf)
        price = np.zeros(len(self.states.groups))
        need, limit = self.memory
        times = self.states.time_s, self.move_s
        costs = Costs(*times, need, limit, price, nothing, free, nothing, nothing)
        labels = self.labels(rules, costs)
        stages = self.best(labels, costs, math.inf)
        return None if stages is None else (self.latency_s(labels) + self.relaxed_s, stages)

    @cached_property
    def relaxed_s(self) -> float:
        """The least latency that the relaxed units add."""
        return float(self.states.time_s[:, self.relaxed].min(axis=0).sum())

    @cached_property
    def memory(self) -> tuple[Floats, Floats]:
        """Bytes of each unit at each position, `(D + 1, n)`, and the limit of each group."""
        problem = self.problem
        limit = problem.memory_limit[[group[0] for group in self.states.groups]]
        need = np.zeros((problem.num_devices + 1, problem.num_units))
        if problem.memory_binds:  # otherwise labels need not differ in it
            for position in range(1, problem.num_devices + 1):
                need[position] = problem.need_bytes(position)
        return need, limit / BOUND_SAFETY

    @cached_property
    def move_s(self) -> Floats:
        """Seconds to move what crosses the boundary after each ideal, `(G, G, N)`."""
        wires = self.states.wires[..., None]
        return np.asarray(move_s(wires, wires.swapaxes(1, 2), self.ideals.crossing))

    def room(self, price: Floats) -> Floats:
        """The price of each state's first device and of all devices not in the state, `(S,)`."""
        free = np.array([len(group) for group in self.states.groups])
        return np.asarray((free - self.states.counts) @ price + price[self.states.arrays.group])

    def _tables(self, costs: Costs) -> Tables:
        return Tables(self.states.arrays, self.ideals.covers, costs, self._pool, self._cells)

    def _placement(self, path: list[list[int]], bottleneck: float) -> UnitPlacement:
        """The plan that goes through these cells."""
        closing = [x for x, y in enumerate(path) if [*path, [-1]][x + 1][0] != y[0]]
        states, ends = zip(*(path[x] for x in closing), strict=True)
        groups = [self.states.all[state][1] for state in states]
        moves: list[float] = self.move_s[groups[:-1], groups[1:], ends[:-1]].tolist()
        stages = zip(self.states.devices(states), [0, *ends], ends, strict=False)
        return self.ideals.placement(stages, bottleneck, moves)
