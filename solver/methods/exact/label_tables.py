"""The DP over ideals and devices for any bottleneck T: its tables, and plans read from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.methods.bounds.simple_bounds import largest_unit
from skyfx.solver.methods.exact.label_kernel import (
    BUSY,
    OVERFLOW,
    SHORTEST,
    backtrack,
    complete_labels,
    propagate,
)
from skyfx.solver.methods.ideals.device_states import States, prices
from skyfx.solver.methods.ideals.order_ideals import Ideals
from skyfx.solver.methods.ideals.relaxed_charges import Charges
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import SearchState
from skyfx.solver.problem.problem import Floats, Problem, UnitPlacement
from skyfx.solver.problem.tolerances import BOUND_SAFETY

__all__: list[str] = ["LabelTables"]

CANDIDATES = 16
"""Plans that are looked at for each T; they differ in how well they place what was put aside."""

CELLS = 200_000
"""Cells that are filled between two looks at the clock."""

WIDTH = 64
"""Labels of a cell at the most, for a proof; fewer where there are many cells."""

PLAN_WIDTH = 6
"""Labels of a cell, for a plan."""

ENDLESS = 1e300
"""A bottleneck that every plan keeps, unless a device cannot run a unit."""

Rules = tuple[float, float, bool, int]


@dataclass
class LabelTables:
    """The tables of the dynamic program, ready for any T."""

    problem: Problem
    ideals: Ideals
    states: States
    aside: tuple[int, ...] = ()
    limits: Limits = field(default_factory=Limits)
    pool: int = 8_000_000
    """Labels; each is 28 bytes, of memory that is not taken before it is needed."""
    high_s: float = field(init=False, default=math.inf)
    """The bottleneck of a plan that is known to exist."""

    def __post_init__(self) -> None:
        shape = (len(self.states.all), len(self.ideals))
        self._cells = (np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32))
        self._most_labels = WIDTH if WIDTH * self._cells[0].size < self.pool else 8
        sums = (np.empty(self.pool) for _ in range(3))
        self._pool: Any = (*sums, np.empty(self.pool, dtype=np.int32))

    def low_s(self, task: SearchState) -> float:
        """A bottleneck that no plan undercuts."""
        throughput = task.problem.assumptions.objective == "throughput"
        return (task.bound if throughput else largest_unit(task.problem)).value

    def possible(self, bottleneck: float) -> bool:
        """Whether there may be a plan with no stage above `bottleneck`; a no is a proof."""
        return len(self._labels(self._rules(bottleneck), WIDTH, proof=True)) > 0

    def plan(self, bottleneck: float) -> UnitPlacement | None:
        """A plan with no stage above `bottleneck` but for units put aside; or None."""
        labels = self._labels(self._rules(bottleneck), PLAN_WIDTH, proof=False)
        return self._best(labels, bottleneck)

    def shortest(self) -> tuple[float, UnitPlacement] | None:
        """A latency that no plan undercuts, and a plan of about that latency."""
        labels = self._labels((ENDLESS, -math.inf, False, SHORTEST), WIDTH, proof=True)
        stages = self._best(labels, math.inf)
        if stages is None:
            return None
        self.high_s = self.problem.cost(stages).bottleneck_s
        return float(self._pool[0][labels].min()) + self._aside_s, stages

    @cached_property
    def _aside_s(self) -> float:
        """What was put aside adds to the latency, at the least."""
        return float(self.states.time_s[:, self.aside].min(axis=0).sum())

    def _rules(self, bottleneck: float) -> Rules:
        """T, the weighted work put aside, and the cost model, as `labels.propagate` wants them."""
        aside = sum(strand.weight for strand in self._charges.strands) * BOUND_SAFETY
        full = self.problem.assumptions.overlap == "full"
        return bottleneck / BOUND_SAFETY, aside, full, BUSY

    def _labels(self, rules: Rules, width: int, *, proof: bool) -> NDArray[np.int64]:
        """The labels of whole plans."""
        costs = self._costs(rules)
        width = min(width, self._most_labels)
        while not self._fill((*rules, width, proof), costs):
            width = self._most_labels = max(1, width // 2)
        labels = np.empty(CANDIDATES, dtype=np.int64)
        return labels[
            : complete_labels(rules, self._tables, costs, self._pool, self._cells, labels)
        ]

    def _fill(self, rules: tuple[Any, ...], costs: tuple[Any, ...]) -> bool:
        """Fill all cells, with a look at the clock now and then; returns whether all had room."""
        tables = (self._tables, self.ideals.covers, costs, self._pool, self._cells)
        num, used, step = len(self.states.all), 0, max(1, CELLS // len(self.ideals))
        for first in range(0, num, step):
            self.limits.check()
            used = propagate((first, min(first + step, num), used), rules, *tables)
            if used == OVERFLOW:
                return False
        return True

    def _best(self, labels: NDArray[np.int64], bottleneck: float) -> UnitPlacement | None:
        """Of the labels' plans the one with the least objective."""
        path = np.empty((len(self.ideals) + self.problem.num_devices, 2), dtype=np.int64)
        found: list[tuple[float, UnitPlacement]] = []
        for label in labels:
            tables = (self._tables, self.ideals.covers, self._pool, self._cells, path)
            length = backtrack(label, *tables)
            stages = self._placement(path[:length].tolist(), bottleneck)
            found.append((self.problem.cost(stages).objective_value, stages))
        found.sort(key=lambda plan: plan[0])
        return found[0][1] if found else None

    @property
    def _tables(self) -> tuple[Any, ...]:
        return self.states.group, self.states.position, *self.states.following

    def _placement(self, path: list[list[int]], bottleneck: float) -> UnitPlacement:
        """The plan that goes through these cells."""
        closing = [x for x, y in enumerate(path) if [*path, [-1]][x + 1][0] != y[0]]
        states, ends = zip(*(path[x] for x in closing), strict=True)
        groups = [self.states.all[state][1] for state in states]
        moves = [
            float(self._move_s[g, h, i]) for g, h, i in zip(groups, groups[1:], ends, strict=False)
        ]
        moving = [a + b for a, b in zip([0.0, *moves], [*moves, 0.0], strict=True)]
        if self.problem.assumptions.overlap == "full":
            moving = [0.0] * len(groups)
        stages = zip(self.states.devices(states), [0, *ends], ends, strict=False)
        return self.ideals.placement(stages, moving, bottleneck)

    def _costs(self, rules: Rules) -> tuple[Any, ...]:
        need, limit = self._memory
        bottleneck, _, _, mode = rules
        weight = self._price if self.aside else np.zeros(len(self._price))
        with np.errstate(over="ignore"):  # room without end is right
            room = self._room(self._price) * bottleneck / BOUND_SAFETY
        time = self.states.time_s if mode == SHORTEST else self._time_s
        times = (time, self._move_s, need, limit, weight, self._rest, room)
        return (*times, *self._aside_behind)

    @cached_property
    def _charges(self) -> Charges:
        return Charges.of(self.problem, self.states, self.aside, self._price)

    @cached_property
    def _time_s(self) -> Floats:
        """Seconds of each unit with what it is charged for, a little less for a proof, `(G, n)`."""
        time: Floats = self.states.time_s + self._charges.time_s * BOUND_SAFETY
        return time

    @cached_property
    def _aside_behind(self) -> tuple[Floats, Floats]:
        """Weighted work aside that can be, and that must be, behind each ideal, `(N,)` each."""
        most, least = np.zeros(len(self.ideals)), np.zeros(len(self.ideals))
        if not self.aside:
            return most, least
        holds = self.ideals.holds
        for strand in self._charges.strands:
            around = [self.ideals.around(i) for i in strand.units]
            can = ~np.any([holds[after].any(axis=0) for _, after in around], axis=0)
            must = ~np.any([holds[before].all(axis=0) for before, _ in around], axis=0)
            most += strand.weight / BOUND_SAFETY * can
            least += strand.weight * BOUND_SAFETY * must
        return most, least

    def _weights(self, units: Sequence[int]) -> Floats:
        """The least weighted time of each of these units."""
        time = self._time_s[:, list(units)]
        weights: Floats = (self._price[:, None] * time).min(axis=0)
        return weights

    @cached_property
    def _rest(self) -> Floats:
        """The least weighted time of the units in each ideal, `(N,)`."""
        least = self._weights(range(self.problem.num_units))
        return np.array([least[inside].sum() for inside in self.ideals.holds.T])

    def _room(self, price: Floats) -> Floats:
        """The price of each state's first device and of all that are not in it, `(S,)`."""
        free = np.array([len(group) for group in self.states.groups])
        counts = np.array([counts for counts, _ in self.states.all])
        room: Floats = (free - counts) @ price + price[self.states.group]
        return room

    @cached_property
    def _memory(self) -> tuple[Floats, Floats]:
        """Bytes of each unit at each position, `(D + 1, n)`, and each group's limit."""
        problem = self.problem
        limit = problem.memory_limit[[group[0] for group in self.states.groups]]
        need = np.zeros((problem.num_devices + 1, problem.num_units))
        if problem.memory_binds:  # otherwise labels need not differ in it
            for position in range(1, problem.num_devices + 1):
                need[position] = problem.need_bytes(position)
        return need, limit / BOUND_SAFETY

    @cached_property
    def _price(self) -> Floats:
        return prices(self.states.time_s)

    @cached_property
    def _move_s(self) -> Floats:
        """Seconds to move what crosses behind each ideal, `(G, G, N)`."""
        latency, per_byte, back_latency, back_per_byte = self.states.wires[..., None]
        forward, backward, some, some_back = self.ideals.crossing
        move: Floats = latency * some + per_byte * forward
        move += back_latency * some_back + back_per_byte * backward
        return move
