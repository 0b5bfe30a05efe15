"""The exact method over pairs of ideals, in `host` communication.

The values that a stage between the ideals I and J writes to the host's memory and reads from it
follow from I, J and its device alone, not from its neighbours:

    writes(I, J)  the values made in J - I that a unit outside J reads
    reads(I, J)   the values made in I that a unit in J - I reads

So with the states `s` of `device_states`, from the last stage to the first,

    best[s, I] = min over J >= I of max(time_s(s, I, J), min over next states r of best[r, J])

is the least bottleneck, without bisection. With sums in place of the maximum it is the latency. For
`step` the method walks down the Pareto front: the least latency, then the least latency with a
smaller bottleneck, and so on, until the least bottleneck cannot make up for the latency.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from skyfx.solver.costs.moves import send_s
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.order_ideals import Ideals
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Bound, MethodUpdate, SearchState
from skyfx.solver.problem.infeasibility import nothing_fits
from skyfx.solver.problem.instance import Floats, UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import BOUND_SAFETY

MAX_IDEALS = 2500
MAX_CELLS = 2_000_000
"""States times ideals."""

MAX_PAIRS = 4_000_000


def host_pair_dp(task: SearchState) -> Iterator[MethodUpdate]:
    """Find and prove the best plan where values go through the host's memory."""
    problem, states = task.problem, task.features.num_states
    ideals = Ideals.of(problem, min(MAX_IDEALS, MAX_CELLS // states))
    if ideals is None:
        yield MethodUpdate(remark=f"too many ideals, with {states} states of devices")
        return
    remark = f"{len(ideals)} ideals x {states} states of devices"
    every = Stages.of(problem, ideals, States(problem))
    if every is None:
        yield MethodUpdate(remark=f"{remark}: too many pairs")
        return
    remark += f", {len(every.before)} stages"
    tables, assumptions = PairTables(every, task.limits), problem.assumptions
    bottleneck, stages = tables.best(latency=False)
    if stages is None:
        yield MethodUpdate(infeasible=nothing_fits(task.problem), remark=remark)
        return
    if assumptions.objective == "throughput":
        bound = Bound(bottleneck * BOUND_SAFETY, "host pair dp")
        yield MethodUpdate(stages=stages, bound=bound, remark=remark)
        return
    yield MethodUpdate(stages=stages, remark=remark)
    rounds = assumptions.microbatches - 1 if assumptions.objective == "step" else 0
    best, at_most = task.problem.cost(stages).objective_value, math.inf
    while True:
        latency, stages = tables.best(latency=True, at_most=at_most)
        if stages is None or latency + rounds * bottleneck >= best:
            break
        cost = task.problem.cost(stages)
        best = min(best, cost.objective_value)
        bound = Bound(min(best, latency + rounds * bottleneck) * BOUND_SAFETY, "host pair dp")
        yield MethodUpdate(stages=stages, bound=bound, remark=remark)
        at_most = cost.bottleneck_s * BOUND_SAFETY
        if rounds == 0:
            return
    yield MethodUpdate(bound=Bound(best * BOUND_SAFETY, "host pair dp"), remark=remark)


@dataclass(frozen=True)
class Stages:
    """Every stage that a plan can have, `P` of them: the ideals before and after it, and costs.

    They are ordered by the ideal before them. `moves` are values written, bytes written, values
    read and bytes read, `(4, P)`; `peak_bytes` is the largest output in each.
    """

    problem: Problem
    ideals: Ideals
    states: States
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    first: NDArray[np.int64]
    """The first stage of each ideal, and `P`, `(N + 1,)`; each ideal has the empty stage."""
    moves: Floats
    peak_bytes: Floats

    @classmethod
    def of(cls, problem: Problem, ideals: Ideals, states: States) -> "Stages | None":
        """List the stages; None where there are too many."""
        held = ideals.holds.astype(np.float32)
        before, after = np.nonzero(held.T @ held == held.sum(axis=0)[:, None])
        if len(before) > MAX_PAIRS:
            return None
        first = np.searchsorted(before, np.arange(len(ideals) + 1))
        traffic = _Traffic(problem, ideals)
        moves, peak = np.empty((4, len(before))), np.zeros(len(before))
        for i in range(len(ideals)):
            part = slice(first[i], first[i + 1])
            moves[:, part] = traffic.between(i, after[part])
            if problem.peak_bytes.any():
                inside = ideals.holds[:, after[part]] & ~ideals.holds[:, [i]]
                peak[part] = (inside * problem.peak_bytes[:, None]).max(axis=0)
        return cls(problem, ideals, states, before, after, first, moves, peak)

    def compute_s(self, group: int) -> Floats:
        """Seconds of each stage on a group's device; infinite where it cannot run."""
        time_s = self.states.time_s[group]
        runs = np.isfinite(time_s)
        compute = self._between(np.where(runs, time_s, 0.0))
        compute[self._between(~runs * 1.0) > 0.5] = np.inf
        return compute

    def fit(self, group: int, position: int) -> NDArray[np.bool_]:
        """Whether each stage fits the memory of a group's device at a position from the end."""
        limit = self.problem.memory_limit[self.states.groups[group][0]]
        need = self._between(self.problem.need_bytes(position)) + self.peak_bytes
        return np.asarray(need <= limit / BOUND_SAFETY)

    def _between(self, of_unit: Floats) -> Floats:
        held = of_unit @ self.ideals.holds
        return np.asarray(held[self.after] - held[self.before])


class _Traffic:
    """The values that stages write to the host and read from it."""

    def __init__(self, problem: Problem, ideals: Ideals) -> None:
        inside = frozenset(range(problem.num_units)) - ideals.outside
        values = [(v, sorted(inside & {*v.consumers} - {v.producer})) for v in problem.values]
        values = [(v, readers) for v, readers in values if readers]
        shape = (len(values), len(ideals))
        self._made = np.empty(shape, dtype=bool)
        self._read = np.empty(shape, dtype=np.int16)
        self._alive = np.empty(shape, dtype=bool)
        for x, (value, readers) in enumerate(values):
            self._made[x] = ideals.holds[value.producer]
            self._read[x] = ideals.holds[readers].sum(axis=0)
            self._alive[x] = self._made[x] & (self._read[x] < len(readers))
        sizes = [(value.count, value.output_bytes) for value, _ in values]
        self._sizes = np.array(sizes, dtype=float).reshape(-1, 2).T

    def between(self, i: int, after: NDArray[np.int64]) -> Floats:
        """Values and bytes written, values and bytes read, `(4, len(after))`."""
        made = self._made[:, i]
        writes = self._sizes[:, ~made] @ self._alive[~made][:, after]
        reads = self._read[made][:, after] > self._read[made, i][:, None]
        return np.concatenate([writes, self._sizes[:, made] @ reads])


@dataclass(frozen=True)
class PairTables:
    """The dynamic program over stages and states."""

    stages: Stages
    limits: Limits

    @cached_property
    def _costs(self) -> list[tuple[Floats, Floats]]:
        """Per group, seconds that each stage takes, and seconds that it adds to the latency."""
        full = self.stages.problem.assumptions.overlap == "full"
        costs = []
        for group, (device, *_) in enumerate(self.stages.states.groups):
            compute, wire = self.stages.compute_s(group), self.stages.problem.host_wire
            send = send_s(wire(device, to_host=True), *self.stages.moves[:2])
            receive = send_s(wire(device, to_host=False), *self.stages.moves[2:])
            total = compute + send + receive
            busy = np.maximum(compute, np.maximum(send, receive)) if full else total
            costs.append((busy, total))
        return costs

    def best(
        self, *, latency: bool, at_most: float = math.inf
    ) -> tuple[float, UnitPlacement | None]:
        """The least bottleneck or latency of a plan with no stage above `at_most`, and the plan."""
        states, stages = self.stages.states, self.stages
        best = np.full((len(states.all), len(stages.ideals)), np.inf)
        for s, (_, group) in enumerate(states.all):
            self.limits.check()
            cost = self._stage_cost(s, group, latency, at_most)
            onward = self._onward(best, states.successors(s))
            joined = (np.add if latency else np.maximum)(cost, onward[stages.after])
            best[s] = np.minimum.reduceat(joined, stages.first[:-1])
        start = int(best[:, 0].argmin())
        value = float(best[start, 0])
        found = math.isfinite(value)
        return value, self._trace(best, start, latency, at_most) if found else None

    def _stage_cost(self, s: int, group: int, latency: bool, at_most: float) -> Floats:
        (busy, total), stages = self._costs[group], self.stages
        fits = stages.fit(group, int(stages.states.arrays.position[s])) & (busy <= at_most)
        return np.where(fits, total if latency else busy, np.inf)

    def _onward(self, best: Floats, successors: NDArray[np.int32]) -> Floats:
        """The cost of all later stages at each ideal; 0 after the last stage."""
        if len(successors):
            return np.asarray(best[successors].min(axis=0))
        end = np.full(best.shape[1], np.inf)
        end[-1] = 0.0
        return end

    def _trace(self, best: Floats, s: int, latency: bool, at_most: float) -> UnitPlacement:
        states, stages, path, here = self.stages.states, self.stages, [], 0
        while s >= 0:
            successors = states.successors(s)
            part = slice(stages.first[here], stages.first[here + 1])
            cost = self._stage_cost(s, states.all[s][1], latency, at_most)
            onward = self._onward(best, successors)[stages.after[part]]
            joined = (np.add if latency else np.maximum)(cost[part], onward)
            there = int(stages.after[part][joined.argmin()])
            path.append((s, here, there))
            s = int(successors[best[successors, there].argmin()]) if len(successors) else -1
            here = there
        devices = states.devices([state for state, _, _ in path])
        chosen = [(d, i, j) for d, (_, i, j) in zip(devices, path, strict=True)]
        return stages.ideals.placement(chosen, math.inf)
