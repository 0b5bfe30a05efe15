"""The exact method in `relay` for graphs of many ideals, for throughput: all ideals, in levels.

`label_dp` keeps several labels per cell, for relaxed units and for memory. Where all ideals can be
listed and memory does not bind, one number per cell is enough (`level_kernel`). So a branching
graph keeps its hundred thousands of ideals, and no unit is relaxed. Where memory does bind, a bound
proven without memory holds as well, and a plan may happen to fit. Bisection on T.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from skyfx.solver.costs.moves import Crossing, move_s
from skyfx.solver.methods.bisection import LEVELS, Bisection
from skyfx.solver.methods.exact.level_kernel import (
    BEGINS,
    CLOSES,
    Level,
    LevelCosts,
    LevelRules,
    Values,
    crossing_sums,
    descend,
)
from skyfx.solver.methods.features import MAX_CELLS, MAX_IDEALS, MAX_LEVEL
from skyfx.solver.methods.ideals.bitset_ideals import BitIdeals
from skyfx.solver.methods.ideals.bitset_kernel import covers
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Bound, Candidate, MethodUpdate, SearchState
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import BOUND_SAFETY

QUICK_CELLS, QUICK_IDEALS = 120_000_000, 1_500_000
"""States times ideals, and ideals, that take a short time."""

PART = 1_000_000
"""Cells between two looks at the clock."""


def level_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find and prove the best bottleneck, where all ideals can be listed and are few."""
    yield from _level_dp(task, QUICK_CELLS, QUICK_IDEALS)


def large_level_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """As `level_dp`, with many ideals; `label_dp` is faster where few units have to be relaxed."""
    yield from _level_dp(task, MAX_CELLS, MAX_IDEALS)


def _level_dp(task: SearchState, max_cells: int, max_ideals: int) -> Iterator[MethodUpdate]:
    num_states = task.features.num_states
    at_most = min(max_ideals, max_cells // num_states)
    levels = task.features.levels(at_most, task.limits)
    if levels is None:
        yield MethodUpdate(remark=f"more than {at_most} ideals")
        return
    sizes = [len(ideals) for ideals, _ in levels]
    remark = f"{sum(sizes)} ideals x {num_states} states of devices"
    if max(sizes) * num_states > MAX_LEVEL:
        yield MethodUpdate(remark=remark)
        return
    ideals, states = task.features.lattice, States(task.problem)
    tables = LevelTables(task.problem, states, task.limits, ideals, levels)
    search = Bisection(task.bound.value, task.bottleneck_s, LEVELS)
    for bottleneck in search:
        stages = tables.plan(bottleneck)
        if stages is None:
            search.low = bottleneck * BOUND_SAFETY
            yield MethodUpdate(bound=Bound(search.low, "level dp"), remark=remark)
            continue
        yield MethodUpdate(stages=stages, remark=remark)
        found = Candidate.of(task.problem, stages)
        if found is None:
            return  # it does not fit: more cannot be proven without memory
        search.keep(bottleneck, found.cost.bottleneck_s)


@dataclass
class LevelTables:
    """The dynamic program for any T."""

    problem: Problem
    states: States
    limits: Limits
    ideals: BitIdeals
    levels: list[tuple[Any, Any]]
    """All ideals by size, and the units that each can take next, as bits."""

    def plan(self, bottleneck: float) -> UnitPlacement | None:
        """A plan with no stage above `bottleneck`, or None: then there is none."""
        costs = self._costs(bottleneck / BOUND_SAFETY)
        full = self.problem.assumptions.overlap == "full"
        levels, num = self.by_size, len(self.states.all)
        how: list[Any] = []
        above = np.full((1, num), np.inf)
        for depth in range(len(levels) - 1, -1, -1):
            size = len(levels[depth].inside)
            least = np.empty((size, num))
            how.append(np.zeros((size, num), dtype=np.uint8))
            rules = LevelRules(bottleneck / BOUND_SAFETY, full, depth == len(levels) - 1)
            step = 1 + PART // num
            for begin in range(0, size, step):
                self.limits.check()
                end = min(begin + step, size)
                descend(begin, end, rules, levels[depth], costs, above, least, how[-1])
            above = least
        state = int(above[0].argmin())
        if not math.isfinite(above[0, state]):
            return None
        return self._trace(state, how[::-1], bottleneck)

    def _trace(self, s: int, how: list[Any], bottleneck: float) -> UnitPlacement:
        """The plan that begins with a state and the empty ideal."""
        depth, x, states, chain = 0, 0, [s], [(0, 0)]
        while (way := int(how[depth][x, s])) != BEGINS:
            if way >= CLOSES:
                s = int(self.states.successors(s)[way - CLOSES])
                states.append(s)
                chain.append((depth, x))
            else:
                larger = self.by_size[depth].covers
                x = int(larger.target[larger.first[x] + way])
                depth += 1
        chain.append((depth, x))
        groups = [self.states.all[state][1] for state in states]
        wires, moves = self.states.wires, []
        for g, h, (level, number) in zip(groups[:-1], groups[1:], chain[1:-1], strict=True):
            crossing = Crossing(*(of[number] for of in self.by_size[level].crossing))
            moves.append(float(move_s(wires[:, g, h], wires[:, h, g], crossing)))
        members = [self.levels[level][0][number] for level, number in chain]
        devices = list(self.states.devices(states))
        return self.ideals.placement(devices, members, bottleneck, moves)

    @cached_property
    def by_size(self) -> list[Level]:
        """The ideals of each size."""
        found, weight = [], self.ideals.weights(self.states)
        following = [*self.levels[1:], self.levels[0]]
        for (level, ready), (larger, _) in zip(self.levels, following, strict=True):
            self.limits.check()
            inside = self.ideals.held(level) @ weight
            crossing = crossing_sums(level, self._values)
            outside = weight.sum() - inside
            found.append(Level(covers(level, ready, larger), crossing, inside, outside))
        return found

    @cached_property
    def _values(self) -> Values:
        place, values = self.ideals.place, self.ideals.values
        return Values(
            np.array([-1 if v.is_input else place.get(v.producer, -2) for v, _ in values]),
            self.ideals.words(
                {*readers, *([place[v.producer]] if v.is_input and v.producer in place else [])}
                for v, readers in values
            ),
            np.array([v.is_output for v, _ in values]),
            np.array([v.output_bytes for v, _ in values]),
            np.array([v.gradient_bytes for v, _ in values]),
        )

    def _costs(self, bottleneck: float) -> LevelCosts:
        states = self.states
        price = states.price
        used = states.counts @ price
        whole = np.array([len(group) for group in states.groups]) @ price
        with np.errstate(over="ignore"):  # room without end is right
            left = (whole - used + price[states.arrays.group]) * (bottleneck / BOUND_SAFETY)
            used = used * (bottleneck / BOUND_SAFETY)
        return LevelCosts(
            states.arrays, states.time_s[:, self.ideals.units], states.wires, left, used
        )
