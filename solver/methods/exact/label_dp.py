"""The exact method over ideals, in `relay`: every plan of a graph is a chain of ideals.

At a fixed bottleneck T the question is only feasibility. The DP of `label_kernel` answers it from
the last stage to the first, over states (the devices used from a stage on, and the device of that
stage) and ideals (the units before the stage). The time of a stage is a sum over its units, so
pairs of ideals need not be listed: a label passes from an ideal to the ideals with one unit less,
and at any ideal the next stage may begin. Bisection on T finds the optimum; a T without a plan is a
lower bound.

Units that would multiply the ideals are relaxed (`relaxed_units`): their work may be anywhere. This
can only lower the bound, and a plan gives each of them a place afterwards.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from skyfx.solver.methods.bisection import INTERVAL_LABELS, LABELS, Bisection
from skyfx.solver.methods.bounds.simple_bounds import largest_unit
from skyfx.solver.methods.exact.label_kernel import BUSY, Costs, Rules
from skyfx.solver.methods.exact.label_lattice import WIDTH, LabelLattice, interval_lattices
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.relaxed_charges import RelaxedCharges
from skyfx.solver.methods.ideals.relaxed_units import relax_until, work_share
from skyfx.solver.methods.method import Bound, MethodUpdate, SearchState
from skyfx.solver.problem.infeasibility import nothing_fits
from skyfx.solver.problem.instance import Floats, UnitPlacement
from skyfx.solver.problem.tolerances import BOUND_SAFETY

MAX_CELLS = 6_000_000
"""States times ideals."""

FAR = 0.85
"""Where T begins, as a share of the best plan's, if no better plan is searched for."""

CELLS_PER_S = 1_000_000
"""Cells per second that is left; filling them once takes a small part of it."""

MUCH = 0.03
"""Share of all work that is relaxed only where the ideals cannot all be listed."""

PLAN_WIDTH = 6
"""Labels per cell, for a plan."""

MAX_IDEALS = 100_000
CLOSE = 2e-3
"""Distance of the two ends of T at which to stop if no plan reaches the upper end."""


def interval_label_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find the best plans of which every stage is an interval of one order of the units."""
    problem, high = task.problem, task.bottleneck_s
    for lattice, remark in interval_lattices(task):
        tables = LabelTables(lattice)
        if not math.isfinite(high) and (shortest := lattice.shortest()):
            yield MethodUpdate(stages=shortest[1], remark=remark)
            high = problem.cost(shortest[1]).bottleneck_s
        search = Bisection(_lowest_s(task), high, INTERVAL_LABELS)
        for bottleneck in search:
            stages = tables.plan(bottleneck)
            if stages is None:
                search.low = bottleneck
            else:
                search.keep(bottleneck, problem.cost(stages).bottleneck_s)
                yield MethodUpdate(stages=stages, remark=remark)
        high = search.high


def label_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find the best plan; prove it where no unit has to be relaxed."""
    problem, states = task.problem, task.features.num_states
    cells = int(min(MAX_CELLS, CELLS_PER_S * task.limits.left_s))
    found = relax_until(problem, min(MAX_IDEALS, cells // states))
    if found is None:
        yield MethodUpdate(remark=f"too many ideals, with {states} states of devices")
        return
    ideals, relaxed = found
    remark = f"{len(ideals)} ideals x {states} states of devices, {len(relaxed)} relaxed units"
    much = work_share(problem, relaxed) > MUCH
    if much and task.features.lists_all_ideals(task.limits):
        yield MethodUpdate(remark=f"{remark}: too much work, as all ideals can be listed")
        return
    lattice = LabelLattice(problem, ideals, States(problem), tuple(relaxed), task.limits)
    yield from _halve(task, lattice, remark, hopeful=not much)


def _lowest_s(task: SearchState) -> float:
    """A lower bound of the bottleneck of every plan."""
    throughput = task.problem.assumptions.objective == "throughput"
    return (task.bound if throughput else largest_unit(task.problem)).value


def _halve(
    task: SearchState, lattice: LabelLattice, remark: str, *, hopeful: bool
) -> Iterator[MethodUpdate]:
    """Bisect on T; search for plans only if `hopeful`: few hold where much work is relaxed."""
    assumptions, problem = task.problem.assumptions, task.problem
    latency_s, rounds, high = 0.0, 1, task.bottleneck_s
    if assumptions.objective != "throughput" or task.incumbent is None:
        shortest = lattice.shortest()
        if shortest is None:
            yield MethodUpdate(infeasible=nothing_fits(problem), remark=remark)
            return
        yield MethodUpdate(stages=shortest[1], remark=remark)
        high = min(high, problem.cost(shortest[1]).bottleneck_s)
        if assumptions.objective != "throughput":
            latency_s, rounds = shortest[0] * BOUND_SAFETY, assumptions.microbatches - 1
        if assumptions.objective == "latency":
            yield MethodUpdate(bound=Bound(latency_s, "label dp"), remark=remark)
            return
    tables, floor = LabelTables(lattice), 0.0 if hopeful else FAR * task.bottleneck_s
    search = Bisection(_lowest_s(task), high, LABELS, floor)
    for middle in search:
        if not tables.possible(middle):
            search.low = middle * BOUND_SAFETY
            bound = Bound(latency_s + rounds * search.low, "label dp")
            yield MethodUpdate(bound=bound, remark=remark)
            continue
        stages = tables.plan(middle) if hopeful else None
        search.keep(middle, math.inf if stages is None else problem.cost(stages).bottleneck_s)
        yield MethodUpdate(stages=stages, remark=remark)
        if not search.reached and lattice.relaxed and search.high < search.low * (1 + CLOSE):
            return  # the relaxed units hide more than the distance of the two


@dataclass
class LabelTables:
    """The tables of the dynamic program for throughput, ready for any T."""

    lattice: LabelLattice

    def possible(self, bottleneck: float) -> bool:
        """Whether there may be a plan with no stage above `bottleneck`; a no is a proof."""
        rules = self._rules(bottleneck, WIDTH, proof=True)
        return len(self.lattice.labels(rules, self._costs(rules))) > 0

    def plan(self, bottleneck: float) -> UnitPlacement | None:
        """A plan with no stage above `bottleneck` except for relaxed units; or None."""
        rules = self._rules(bottleneck, PLAN_WIDTH, proof=False)
        costs = self._costs(rules)
        return self.lattice.best(self.lattice.labels(rules, costs), costs, bottleneck)

    def _rules(self, bottleneck: float, width: int, *, proof: bool) -> Rules:
        relaxed = sum(tree.weight for tree in self._charges.trees) * BOUND_SAFETY
        overlaps = self.lattice.problem.assumptions.overlap == "full"
        return Rules(bottleneck / BOUND_SAFETY, relaxed, overlaps, BUSY, width, proof)

    def _costs(self, rules: Rules) -> Costs:
        price = self.lattice.states.price
        with np.errstate(over="ignore"):  # infinite room is right
            room = self.lattice.room(price) * rules.bottleneck / BOUND_SAFETY
        need, limit = self.lattice.memory
        times, price = (self._time_s, self.lattice.move_s), price * bool(self.lattice.relaxed)
        return Costs(*times, need, limit, price, self._rest, room, *self._relaxed_after)

    @cached_property
    def _charges(self) -> RelaxedCharges:
        lattice = self.lattice
        return RelaxedCharges.of(lattice.problem, lattice.states, lattice.relaxed)

    @cached_property
    def _time_s(self) -> Floats:
        """Seconds of each unit with its charges, a little less for a proof, `(G, n)`."""
        return np.asarray(self.lattice.states.time_s + self._charges.time_s * BOUND_SAFETY)

    @cached_property
    def _relaxed_after(self) -> tuple[Floats, Floats]:
        """The most and the least weighted relaxed work after each ideal, `(N,)` each."""
        ideals = self.lattice.ideals
        most, least = np.zeros(len(ideals)), np.zeros(len(ideals))
        for tree in self._charges.trees:
            can = ~np.any([ideals.holds[ideals.after[i]].any(axis=0) for i in tree.units], axis=0)
            must = ~np.any([ideals.holds[ideals.before[i]].all(axis=0) for i in tree.units], axis=0)
            most += tree.weight / BOUND_SAFETY * can
            least += tree.weight * BOUND_SAFETY * must
        return most, least

    @cached_property
    def _rest(self) -> Floats:
        """The least weighted time of the units in each ideal, `(N,)`."""
        least = (self.lattice.states.price[:, None] * self._time_s).min(axis=0)
        return np.array([least[inside].sum() for inside in self.lattice.ideals.holds.T])
