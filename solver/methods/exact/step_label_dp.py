"""The exact method over ideals for a step, in `relay`: the least latency within each bottleneck.

A step is the latency and M - 1 bottlenecks T. With more T there is less latency, so of all plans
with a bottleneck between `low` and `high`

    step >= latency(high) + (M - 1) low

where latency(T) is the least of all plans that keep T. Its labels (`labels.py`) sum the latency of
closed stages. Intervals of T are halved, the one with the least bound first. Those in which nothing
better than the best plan can be end at once: a label that has come too far is dropped, by what is
left of the model and the water-filling of `bounds`.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from skyfx.solver.methods.bounds.simple_bounds import bottleneck_bound, least_weighted, levels
from skyfx.solver.methods.exact.label_kernel import STEP
from skyfx.solver.methods.exact.label_tables import LabelTables
from skyfx.solver.methods.ideals.device_states import MAX_STATES, States
from skyfx.solver.methods.ideals.order_ideals import Ideals
from skyfx.solver.methods.ideals.relaxed_units import narrowed
from skyfx.solver.methods.method import Bound, Candidate, MethodUpdate, SearchState
from skyfx.solver.problem.linear_extensions import depth_first_extension, graph_order
from skyfx.solver.problem.problem import Floats, UnitPlacement
from skyfx.solver.problem.tolerances import BOUND_SAFETY, OPTIMALITY_TOLERANCE

__all__: list[str] = ["interval_step_label_dp", "step_label_dp"]

MAX_CELLS = 3_000_000
"""States times ideals."""

CELLS_PER_S = 200_000
"""Cells for each second that is left, so that there is time for many T."""

WIDTH = 16
"""Labels a cell."""

POOL = 24_000_000
"""Labels."""

FINE = 1e-3
"""Intervals of less than so much of T are not halved."""


def interval_step_label_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find the best plans of which every stage is an interval of one order of the units."""
    problem, states = task.problem, States.number(task.problem)
    if not _asked(task, states):
        yield MethodUpdate(remark="only for steps in relay and few kinds of devices, from a plan")
        return
    for order in (depth_first_extension(problem), graph_order(problem)):
        ideals = Ideals.line(problem, order)
        tables = StepLabelTables(problem, ideals, States(problem), limits=task.limits)
        remark = f"{len(ideals)} cuts x {states} states of devices"
        for answer in _Halving(task, tables, remark).run():
            yield MethodUpdate(stages=answer.stages, remark=remark)


def step_label_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find and prove the best step of all, as far as units need not be put aside."""
    problem, states = task.problem, States.number(task.problem)
    if not _asked(task, states):
        yield MethodUpdate(remark="only for steps in relay and few kinds of devices, from a plan")
        return
    cells = int(min(MAX_CELLS, CELLS_PER_S * task.limits.left_s))
    found = narrowed(problem, max(cells // states, problem.num_units))
    if found is None:
        yield MethodUpdate(remark=f"too many ideals, with {states} states of devices")
        return
    ideals, aside = found
    remark = f"{len(ideals)} ideals x {states} states of devices, {len(aside)} units put aside"
    tables = StepLabelTables(problem, ideals, States(problem), tuple(aside), task.limits, POOL)
    yield from _Halving(task, tables, remark).run()


def _asked(task: SearchState, states: int) -> bool:
    assumptions = task.problem.assumptions
    asked = (assumptions.communication, assumptions.objective)
    return asked == ("relay", "step") and states <= MAX_STATES and task.incumbent is not None


class StepLabelTables(LabelTables):
    """The dynamic program for the latency within T."""

    def within(self, bottleneck: float, most_s: float) -> tuple[float, UnitPlacement] | None:
        """A latency that no plan with no stage above `bottleneck` undercuts, and about such a plan.

        None: none of them has a latency below `most_s`.
        """
        full = self.problem.assumptions.overlap == "full"
        rules = (bottleneck / BOUND_SAFETY, self._aside_s - most_s / BOUND_SAFETY, full, STEP)
        self._most_labels = WIDTH  # what was too wide for another T may not be for this one
        labels = self._labels(rules, WIDTH, proof=True)
        stages = self._best(labels, bottleneck)
        if stages is None:
            return None
        t, a, _, _ = self._pool
        return float((t[labels] + a[labels]).min()) * BOUND_SAFETY + self._aside_s, stages

    def _costs(self, rules: tuple[float, float, bool, int]) -> tuple[Any, ...]:
        bottleneck, mode = rules[0], rules[3]
        if mode != STEP:
            return super()._costs(rules)
        need, limit = self._memory
        extra = max(self._prices, key=lambda y: self._least_s(y, bottleneck))
        rest = self._weighted(extra) @ self.ideals.holds * BOUND_SAFETY
        nothing = np.zeros(len(self.ideals))
        room = self._room(extra) * bottleneck / BOUND_SAFETY
        costs = self.states.time_s, self._move_s, need, limit, 1 + extra, rest, room
        return *costs, nothing, nothing

    @cached_property
    def _prices(self) -> list[Floats]:
        """What a device's time may cost beside itself, `(G,)` each."""
        first = [group[0] for group in self.states.groups]
        return [y[first] for y in levels(self.problem)]

    def _weighted(self, extra: Floats) -> Floats:
        """The least time of each unit where time costs so much more, `(n,)`."""
        least = least_weighted(self.states.time_s, 1 + extra)
        return np.where(np.isfinite(least), least, 0.0)

    def _least_s(self, extra: Floats, bottleneck: float) -> float:
        """What the latency is at the least if no device takes more than the bottleneck."""
        sizes = np.array([len(group) for group in self.states.groups])
        return float(self._weighted(extra).sum() - bottleneck * (extra @ sizes))


@dataclass(order=True, slots=True)
class _Between:
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
        shortest = self._tables.shortest()
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
        """What a plan has to be below to be worth finding."""
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
