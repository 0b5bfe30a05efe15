"""The exact method in `relay` for graphs of many ideals, for throughput: all ideals, in levels.

`lattice.py` keeps several labels a cell, for units put aside and for memory. Where all ideals can
be listed and memory does not bind one number a cell is enough (`levels.py`), so that a branching
graph keeps its hundred thousands of ideals and nothing is put aside. Where memory does bind, what
is proven without it holds as well, and a plan may happen to fit. Bisection on T.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from skyfx.solver.methods.exact.level_kernel import (
    BEGINS,
    CLOSES,
    Costs,
    Crossing,
    crossing_sums,
    descend,
)
from skyfx.solver.methods.ideals.bitset_ideals import BitIdeals
from skyfx.solver.methods.ideals.bitset_kernels import covers
from skyfx.solver.methods.ideals.device_states import States, prices
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Bound, Candidate, MethodUpdate, SearchState
from skyfx.solver.problem.problem import Floats, Problem, UnitPlacement
from skyfx.solver.problem.tolerances import BOUND_SAFETY, OPTIMALITY_TOLERANCE

__all__: list[str] = ["large_level_dp", "level_dp", "lists_all_ideals"]

MAX_STATES = 5000
QUICK_CELLS, MAX_CELLS = 120_000_000, 600_000_000
"""States times ideals; a cell takes a byte."""

MAX_LEVEL = 40_000_000
"""States times ideals of one size; such a cell takes 16 bytes."""

PART = 1_000_000
"""Cells between two looks at the clock."""

NEAR = 0.003
"""Distance of plan and bound from which on to look just below the plan."""

RISE = 0.1
"""How far T may rise above what is proven: the larger T, the less falls out of the windows."""


def level_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find and prove the best bottleneck, where all ideals can be listed and are few."""
    yield from _within(task, QUICK_CELLS)


def large_level_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """The same with many ideals; `lattice` is quicker where little has to be put aside."""
    yield from _within(task, MAX_CELLS)


def lists_all_ideals(problem: Problem, limits: Limits) -> bool:
    """Whether `large_level_dp` can list all ideals of a problem."""
    states = States.number(problem)
    if problem.assumptions.objective != "throughput" or states > MAX_STATES:
        return False
    return _remark(LevelTables(problem, States(problem), limits, MAX_CELLS))[0]


def _within(task: SearchState, most_cells: int) -> Iterator[MethodUpdate]:
    problem = task.problem
    asked = (problem.assumptions.communication, problem.assumptions.objective)
    few = States.number(problem) <= MAX_STATES
    if asked != ("relay", "throughput") or not few or task.incumbent is None:
        yield MethodUpdate(
            remark="only for throughput in relay and few kinds of devices, from a plan"
        )
        return
    tables = LevelTables(problem, States(problem), task.limits, most_cells)
    few, remark = _remark(tables)
    if few:
        yield from _halve(task, tables, remark)
    else:
        yield MethodUpdate(remark=remark)


def _remark(tables: "LevelTables") -> tuple[bool, str]:
    """Whether a program has few enough cells, and what there is to say of it."""
    states = len(tables.states.all)
    if tables.levels is None:
        return False, f"more than {tables.most_cells // states} ideals"
    sizes = [len(ideals) for ideals, _ in tables.levels]
    remark = f"{sum(sizes)} ideals x {states} states of devices"
    return max(sizes) * states <= MAX_LEVEL, remark


def _halve(task: SearchState, tables: "LevelTables", remark: str) -> Iterator[MethodUpdate]:
    """Halve the interval between what is proven impossible and what is possible."""
    low, high, reached = task.bound.value, task.bottleneck_s, True
    zero = low == 0  # whether T = 0 is still to be tried, as no multiple of it leads further
    while high > low * (1 + OPTIMALITY_TOLERANCE):
        if reached and high < low * (1 + NEAR):
            # Just below the best plan there may be none: then all is proven at once.
            middle = high * (1 - OPTIMALITY_TOLERANCE / 2)
        else:
            middle = 0.0 if zero else min((low + high) / 2, low * (1 + RISE) or math.inf)
        zero = False
        stages = tables.plan(middle)
        if stages is None:
            low = middle * BOUND_SAFETY
            yield MethodUpdate(bound=Bound(low, "level dp"), remark=remark)
            continue
        yield MethodUpdate(stages=stages, remark=remark)
        found = Candidate.of(task.problem, stages)
        if found is None:
            return  # it does not fit: more cannot be proven without memory
        reached = found.cost.bottleneck_s <= middle
        high = min(middle, found.cost.bottleneck_s)


@dataclass
class LevelTables:
    """The dynamic program for any T."""

    problem: Problem
    states: States
    limits: Limits
    most_cells: int
    ideals: BitIdeals = field(init=False)

    def __post_init__(self) -> None:
        self.ideals = BitIdeals(self.problem)

    @cached_property
    def levels(self) -> list[tuple[Any, Any]] | None:
        """All ideals by size, and what they can take next, as bits; None for too many."""
        return self.ideals.levels(self.most_cells // len(self.states.all), self.limits)

    def plan(self, bottleneck: float) -> UnitPlacement | None:
        """A plan with no stage above `bottleneck`, or None: then there is none."""
        costs, full = self._costs(bottleneck / BOUND_SAFETY), self._full
        levels, num = self._levels, len(self.states.all)
        how: list[Any] = []
        above = np.full((1, num), np.inf)
        for depth in range(len(levels) - 1, -1, -1):
            size = len(levels[depth][3])
            least = np.empty((size, num))
            how.append(np.zeros((size, num), dtype=np.uint8))
            rules, step = (
                (bottleneck / BOUND_SAFETY, full, depth == len(levels) - 1),
                1 + PART // num,
            )
            for begin in range(0, size, step):
                self.limits.check()
                part = (begin, min(begin + step, size))
                descend(part, rules, levels[depth], costs, above, least, how[-1])
            above = least
        state = int(above[0].argmin())
        if not math.isfinite(above[0, state]):
            return None
        return self._trace(state, how[::-1], bottleneck)

    def _trace(self, s: int, how: list[Any], bottleneck: float) -> UnitPlacement:
        """The plan that begins with a state and the empty ideal."""
        first, following = self.states.following
        depth, x, states, line = 0, 0, [s], [(0, 0)]
        while (way := int(how[depth][x, s])) != BEGINS:
            if way >= CLOSES:
                s = int(following[first[s] + way - CLOSES])
                states.append(s)
                line.append((depth, x))
            else:
                covered = self._levels[depth]
                x = int(covered[1][covered[0][x] + way])
                depth += 1
        line.append((depth, x))
        assert self.levels is not None
        groups = [self.states.all[state][1] for state in states]
        pairs = zip(groups[:-1], groups[1:], line[1:-1], strict=True)
        moves = [self._move_s(g, h, *there) for g, h, there in pairs]
        moving = [a + b for a, b in zip([0.0, *moves], [*moves, 0.0], strict=True)]
        return self.ideals.placement(
            list(self.states.devices(states)),
            [self.levels[level][0][number] for level, number in line],
            moving_s=[0.0] * len(moving) if self._full else moving,
            bottleneck=bottleneck,
        )

    def _move_s(self, g: int, h: int, depth: int, x: int) -> float:
        forward, backward, some, some_back = self._levels[depth][3][x]
        latency, per_byte, back_latency, back_per_byte = self.states.wires[:, g, h]
        there = latency * some + per_byte * forward
        return float(there + back_latency * some_back + back_per_byte * backward)

    @property
    def _full(self) -> bool:
        return self.problem.assumptions.overlap == "full"

    @cached_property
    def _levels(self) -> list[tuple[Any, ...]]:
        """Covers, what crosses, and the weighted work inside and outside, of each level."""
        assert self.levels is not None
        found, weight = [], self._weight
        following = [*self.levels[1:], self.levels[0]]
        for (level, ready), (larger, _) in zip(self.levels, following, strict=True):
            self.limits.check()
            of_bytes = level.view(np.uint8)
            held = np.unpackbits(of_bytes, axis=1, bitorder="little")[:, : len(weight)]
            inside = held @ weight
            sums = crossing_sums(level, self._crossing)
            lists_all_ideals = covers(level, ready, larger)
            found.append((*lists_all_ideals, sums, inside, weight.sum() - inside))
        return found

    @cached_property
    def _weight(self) -> Floats:
        time = self.states.time_s
        weight = (prices(time)[:, None] * time[:, self.ideals.units]).min(axis=0)
        return np.where(np.isfinite(weight), weight, 0.0)  # one that runs nowhere is found to

    @cached_property
    def _crossing(self) -> Crossing:
        place, values = self.ideals.place, self.ideals.values
        return Crossing(
            np.array([-1 if v.is_input else place.get(v.producer, -2) for v, _ in values]),
            self.ideals.words(
                {*readers, *([place[v.producer]] if v.is_input and v.producer in place else [])}
                for v, readers in values
            ),
            np.array([v.is_output for v, _ in values]),
            np.array([v.output_bytes for v, _ in values]),
            np.array([v.gradient_bytes for v, _ in values]),
        )

    def _costs(self, bottleneck: float) -> Costs:
        states = self.states
        price = prices(states.time_s)
        used = np.array([counts for counts, _ in states.all]) @ price
        whole = np.array([len(group) for group in states.groups]) @ price
        with np.errstate(over="ignore"):  # room without end is right
            left = (whole - used + price[states.group]) * (bottleneck / BOUND_SAFETY)
            used = used * (bottleneck / BOUND_SAFETY)
        return Costs(
            states.group,
            *states.following,
            states.time_s[:, self.ideals.units],
            states.wires,
            left,
            used,
        )
