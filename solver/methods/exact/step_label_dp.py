"""The exact method over ideals for a step, in `relay`: the least latency within each bottleneck.

A step takes the latency and M - 1 bottlenecks T. A larger T allows less latency, so of all plans
with a bottleneck between `low` and `high`

    step >= latency(high) + (M - 1) low

where latency(T) is the least of all plans that keep T. The labels (`label_kernel`) sum the latency
of closed stages. Intervals of T are halved, the one with the least bound first. An interval without
a better plan ends early: a label is dropped if its latency and the least latency of the units that
are left, by the water-filling of `simple_bounds`, are too long.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from skyfx.solver.methods.bounds.simple_bounds import bottleneck_bound, least_weighted, water_levels
from skyfx.solver.methods.exact.label_kernel import STEP, Costs, Rules
from skyfx.solver.methods.exact.label_lattice import LabelLattice, interval_lattices
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.relaxed_units import relax_until
from skyfx.solver.methods.method import Bound, Candidate, MethodUpdate, SearchState
from skyfx.solver.problem.instance import Floats, UnitPlacement
from skyfx.solver.problem.tolerances import BOUND_SAFETY, OPTIMALITY_TOLERANCE

MAX_CELLS = 3_000_000
"""States times ideals."""

CELLS_PER_S = 200_000
"""Cells per second that is left, so that there is time for many T."""

WIDTH = 16
"""Labels per cell."""

POOL = 24_000_000
"""Labels."""

FINE = 1e-3
"""Intervals of T below this relative width are not halved."""


def interval_step_label_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find the best plans of which every stage is an interval of one order of the units."""
    for lattice, remark in interval_lattices(task):
        for answer in _Halving(task, StepLabelTables(lattice), remark).run():
            yield MethodUpdate(stages=answer.stages, remark=remark)


def step_label_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find the plan with the best step; prove it where no unit has to be relaxed."""
    problem, states = task.problem, task.features.num_states
    cells = int(min(MAX_CELLS, CELLS_PER_S * task.limits.left_s))
    found = relax_until(problem, max(cells // states, problem.num_units))
    if found is None:
        yield MethodUpdate(remark=f"too many ideals, with {states} states of devices")
        return
    ideals, relaxed = found
    remark = f"{len(ideals)} ideals x {states} states of devices, {len(relaxed)} relaxed units"
    lattice = LabelLattice(problem, ideals, States(problem), tuple(relaxed), task.limits, POOL)
    yield from _Halving(task, StepLabelTables(lattice), remark).run()


@dataclass
class StepLabelTables:
    """The tables of the dynamic program for the latency within T."""

    lattice: LabelLattice

    def within(self, bottleneck: float, most_s: float) -> tuple[float, UnitPlacement] | None:
        """A lower bound of the latency where no stage exceeds `bottleneck`, and about such a plan.

        None: no such plan has a latency below `most_s`.
        """
        lattice = self.lattice
        overlaps = lattice.problem.assumptions.overlap == "full"
        spent_s = lattice.relaxed_s - most_s / BOUND_SAFETY
        rules = Rules(bottleneck / BOUND_SAFETY, spent_s, overlaps, STEP, WIDTH, True)
        costs = self._costs(rules.bottleneck)
        lattice.most_labels = WIDTH  # the pool may suffice for this T if not for another
        labels = lattice.labels(rules, costs)
        stages = lattice.best(labels, costs, bottleneck)
        if stages is None:
            return None
        return lattice.latency_s(labels) * BOUND_SAFETY + lattice.relaxed_s, stages

    def _costs(self, bottleneck: float) -> Costs:
        lattice = self.lattice
        need, limit = lattice.memory
        sizes = np.array([len(group) for group in lattice.states.groups])
        # The highest lower bound of the latency if no device takes more than the bottleneck.
        extra = max(self._extras, key=lambda y: self._weighted(y).sum() - bottleneck * (y @ sizes))
        rest = self._weighted(extra) @ lattice.ideals.holds * BOUND_SAFETY
        nothing = np.zeros(len(lattice.ideals))
        room = lattice.room(extra) * bottleneck / BOUND_SAFETY
        times = lattice.states.time_s, lattice.move_s
        return Costs(*times, need, limit, 1 + extra, rest, room, nothing, nothing)

    @cached_property
    def _extras(self) -> list[Floats]:
        """Prices of a device's time on top of the latency, `(G,)` each."""
        first = [group[0] for group in self.lattice.states.groups]
        return [y[first] for y in water_levels(self.lattice.problem)]

    def _weighted(self, extra: Floats) -> Floats:
        """The least weighted time of each unit, `(n,)`; 0 for a unit that runs nowhere."""
        least = least_weighted(self.lattice.states.time_s, 1 + extra)
        return np.where(np.isfinite(least), least, 0.0)


class _Between(NamedTuple):
    """Plans with a bottleneck from `low` to `high`, of which none has less latency."""

    bound: float
    low: float
    high: float
    latency_s: float


class _Halving:
    """Intervals of T, the one with the least bound first."""

    def __init__(self, task: SearchState, tables: StepLabelTables, remark: str) -> None:
        assert task.incumbent is not None
        self._task, self._tables, self._remark = task, tables, remark
        self._waits = task.problem.assumptions.microbatches - 1
        self._best = task.incumbent.value
        self._highest = 0.0
        self._open: list[_Between] = []

    def run(self) -> Iterator[MethodUpdate]:
        """Until no interval can have a plan that is better by more than the gap."""
        shortest = self._tables.lattice.shortest()
        if shortest is None:
            return
        yield self._heard(shortest[1])
        low, latency_s = bottleneck_bound(self._task.problem).value, shortest[0] * BOUND_SAFETY
        if self._waits == 0:
            yield MethodUpdate(bound=Bound(latency_s, "step label dp"), remark=self._remark)
            return
        self._highest = (self._best - latency_s) / self._waits
        self._push(low, self._highest, latency_s)
        while True:
            bound = min([self._target, *(one.bound for one in self._open[:1])])
            yield MethodUpdate(bound=Bound(bound, "step label dp"), remark=self._remark)
            if bound == self._target:
                return
            between = heapq.heappop(self._open)
            if between.high - between.low <= FINE * max(between.low, FINE * self._highest):
                return
            middle = (between.low + between.high) / 2
            self._push(middle, between.high, between.latency_s)
            most_s = self._target - self._waits * between.low
            found = self._tables.within(middle, most_s)
            if found is not None:
                yield self._heard(found[1])
                latency_s = max(found[0], between.latency_s)
                self._push(between.low, self._reached(middle, *found), latency_s)

    @property
    def _target(self) -> float:
        """The step that a plan has to be below to be worth finding."""
        return self._best / (1 + max(self._task.limits.gap, OPTIMALITY_TOLERANCE))

    def _push(self, low: float, high: float, latency_s: float) -> None:
        bound = (latency_s + self._waits * low) * BOUND_SAFETY
        heapq.heappush(self._open, _Between(bound, low, high, latency_s))

    def _heard(self, stages: UnitPlacement) -> MethodUpdate:
        found = Candidate.of(self._task.problem, stages)
        if found is not None:
            self._best = min(self._best, found.value)
        return MethodUpdate(stages=stages, remark=self._remark)

    def _reached(self, high: float, latency_s: float, stages: UnitPlacement) -> float:
        """Where the plan with that latency is: from there to `high` no other has less."""
        cost = self._task.problem.cost(stages)
        exact = cost.latency_s <= latency_s / BOUND_SAFETY**3 and cost.bottleneck_s <= high
        return cost.bottleneck_s if exact else high
