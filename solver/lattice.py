"""The exact method for a graph of few ideals on few kinds of devices, in `relay`.

A plan is a chain of ideals. At a fixed bottleneck T the question is only feasibility, worked out
from the last stage to the first. A state s is (devices used from here on, the first one's group):

    end[s, J]   = the least time in which a stage of state s that ends at ideal J sends:
                  the least move(s, r, J) over next states r with least[r, J] + move(s, r, J) <= T
    least[s, I] = the least time that a stage of state s from I on takes before it receives:
                  the least time(J - I) + end[s, J] over ideals J >= I

As a stage's time is the sum of its units', `least` needs no pairs of ideals. It passes from each
ideal to those with one unit less:

    least[s, I] = min(end[s, I], min over units i that can come next of time[i] + least[s, I + i])

With `overlap = full` sending does not add up: `end` is 0 where a move within T leads on. Bisection
on T finds the optimum, and a T without a plan is a lower bound. With `shortest`, the same tables
hold the least latency instead. Memory is not looked at, which can only lower the bound.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit

from skyfx.solver.bounds import Bound, largest_unit
from skyfx.solver.ideals import Ideals
from skyfx.solver.method import PROVEN, Answer, Task
from skyfx.solver.problem import Floats, Problem, UnitPlacement
from skyfx.solver.states import States

__all__: list[str] = ["lattice"]

MAX_IDEALS = 100_000
MAX_CELLS = 40_000_000
"""States times ideals; each is eight bytes."""

UNDER = 1 - 1e-9
"""Sums of many floats differ in their last digits: a bound stays this far below."""


def lattice(task: Task) -> Iterator[Answer]:
    """Find the best plan of all, or the best when memory is not looked at."""
    problem = task.problem
    if problem.assumptions.communication != "relay":
        yield Answer(says="only for relay")
        return
    states = States.number(problem)
    ideals = Ideals.of(problem, min(MAX_IDEALS, MAX_CELLS // states)) if states < 50_000 else None
    if ideals is None:
        yield Answer(says=f"{states} states of devices, with too many ideals for that")
        return
    says = f"{len(ideals)} ideals x {states} states of devices"
    program = Program(problem, ideals, States(problem))
    if problem.assumptions.objective != "throughput":
        yield _shortest(task, program, says)
    if problem.assumptions.objective != "latency":
        yield from _bisect(task, program, says)


def _shortest(task: Task, program: "Program", says: str) -> Answer:
    """The plan of least latency, which is proven where latency is the objective."""
    stages = program.plan(math.inf, shortest=True)
    bound = Bound(program.least_s() * UNDER, "ideals")
    proven = task.problem.assumptions.objective == "latency"
    return Answer(stages=stages, bound=bound if proven else None, says=says)


def _bisect(task: Task, program: "Program", says: str) -> Iterator[Answer]:
    """Halve the interval between what is proven impossible and what a plan reaches."""
    on_objective = _bound_of(task, program)
    throughput = task.problem.assumptions.objective == "throughput"
    low = (task.bound if throughput else largest_unit(task.problem)).value
    high = task.bottleneck_s
    if not math.isfinite(high):
        stages = program.plan(math.inf)
        if stages is None:
            yield Answer(infeasible="no order of the devices can run all units", says=says)
            return
        high = task.problem.cost(stages).bottleneck_s
        yield Answer(stages=stages, says=says)
    below = False
    while high > low * (1 + PROVEN):
        below = not below
        # Just below the best plan there may be none: then all is proven at once.
        middle = high * (1 - PROVEN / 2) if below else (low + high) / 2
        stages = program.plan(middle)
        if stages is None:
            low = middle * UNDER
            yield Answer(bound=on_objective(low), says=says)
        else:
            high = min(middle, task.problem.cost(stages).bottleneck_s)
            yield Answer(stages=stages, says=says)


def _bound_of(task: Task, program: "Program") -> Callable[[float], Bound]:
    """From a bound on the bottleneck to one on the objective."""
    assumptions = task.problem.assumptions
    if assumptions.objective == "throughput":
        return lambda low: Bound(low, "ideals")
    program.plan(math.inf, shortest=True)
    latency_s = program.least_s() * UNDER
    rounds = assumptions.microbatches - 1
    return lambda low: Bound(latency_s + rounds * low, "ideals: least latency and bottleneck")


@dataclass(frozen=True)
class Program:
    """The tables of the dynamic program, ready for any T."""

    problem: Problem
    ideals: Ideals
    states: States

    @cached_property
    def least(self) -> Floats:
        """`least[s, I]` of the last T, `(S, N)`."""
        return np.empty((len(self.states.all), len(self.ideals)))

    @cached_property
    def move_s(self) -> Floats:
        """Seconds to move what crosses behind each ideal, `(G, G, N)`."""
        latency, per_byte, back_latency, back_per_byte = self.states.wires[..., None]
        forward, backward, some, some_back = self.ideals.crossing
        move: Floats = latency * some + per_byte * forward
        move += back_latency * some_back + back_per_byte * backward
        return move

    @property
    def _full(self) -> bool:
        return self.problem.assumptions.overlap == "full"

    def plan(self, bottleneck: float, *, shortest: bool = False) -> UnitPlacement | None:
        """A plan with no stage above `bottleneck`, or with `shortest` the one of least latency."""
        rules = (bottleneck / UNDER, self.problem.assumptions.overlap == "full", shortest)
        tables = (self.states.group, *self.states.following, self.move_s, self.least)
        fill(rules, tables, self.ideals.covers, self.states.time_s)
        state = int(self.least[:, 0].argmin())
        if not np.isfinite(self.least[state, 0]):
            return None
        return self._trace(state, rules, tables)

    def least_s(self) -> float:
        """The least value of a plan in the table: with `shortest` the latency."""
        return float(self.least[:, 0].min())

    def _trace(self, state: int, rules: Any, tables: Any) -> UnitPlacement:
        """Read the plan from the table, from its first stage on."""
        first, above, added = self.ideals.covers
        path, before, here = [], 0, 0
        while state >= 0:
            value, following = end_of(state, here, rules, tables)
            time_s = self.states.time_s[self.states.group[state]]
            larger = above[first[here] : first[here + 1]]
            onward = time_s[added[first[here] : first[here + 1]]] + self.least[state, larger]
            if onward.min(initial=math.inf) < value:
                here = int(larger[onward.argmin()])
            else:
                path.append((state, before, here))
                state, before = following, here
        devices = self.states.devices([s for s, _, _ in path])
        return self.ideals.placement((d, i, j) for d, (_, i, j) in zip(devices, path, strict=True))


@njit(cache=True)  # type: ignore[untyped-decorator]
def end_of(s: int, j: int, rules: Any, tables: Any) -> tuple[float, int]:
    """`end[s, J]` and the next state, -1 where the pipeline ends."""
    bottleneck, full, shortest = rules
    group, first, following, move_s, least = tables
    best, after = math.inf, -1
    if first[s] == first[s + 1] and j == least.shape[1] - 1:
        best = 0.0
    for x in range(first[s], first[s + 1]):
        r = following[x]
        onward = least[r, j]
        if onward == math.inf:
            continue
        move = move_s[group[s], group[r], j]
        if shortest:
            value = onward + move
        elif full:
            value = 0.0 if max(onward, move) <= bottleneck else math.inf
        else:
            value = move if onward + move <= bottleneck else math.inf
        if value < best:
            best, after = value, r
    return best, after


@njit(cache=True)  # type: ignore[untyped-decorator]
def fill(rules: Any, tables: Any, covers: Any, time_s: Floats) -> None:
    """Fill `least` for the T in `rules`; infinite where a stage would take longer."""
    least = tables[4]
    group = tables[0]
    first, above, added = covers
    for s in range(least.shape[0]):
        time = time_s[group[s]]
        for i in range(least.shape[1] - 1, -1, -1):
            best = end_of(s, i, rules, tables)[0]
            for x in range(first[i], first[i + 1]):
                best = min(best, time[added[x]] + least[s, above[x]])
            least[s, i] = best if best <= rules[0] else math.inf
