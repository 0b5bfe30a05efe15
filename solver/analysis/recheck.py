"""A plan's lower bound, derived a second time by simpler methods.

From the cheapest to the most expensive, until one confirms or refutes the bound:

1. the simple bounds of `bounds.py`;
2. a linear program that spreads the units freely: each may be cut in parts; order and transfers
   do not count, but work does, and memory in the best position;
3. in `relay`, for throughput: the dynamic program over all pairs of ideals `I <= J`, stage by
   stage as the formats define them, on plain arrays, just below the bound;
4. the integer program with the demand to be better than the bound.

Where none decides it, the answer is the highest bound of all.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pulp

from skyfx.solver.methods import mip_backend
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.order_ideals import Ideals
from skyfx.solver.methods.milp import formulation
from skyfx.solver.problem.instance import Floats
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import OPTIMALITY_TOLERANCE

BELOW = 1 - 10 * OPTIMALITY_TOLERANCE
"""The methods look this far below the bound, as they and the bound are rounded."""

MAX_IDEALS = 2000
MAX_WORK = 1_500_000_000
"""States times pairs of ideals: some ten seconds."""

MAX_ROWS = 150_000
MAX_SPREAD = 400_000
"""Units times devices of the linear program."""


@dataclass(frozen=True, slots=True)
class Recheck:
    """The verdict on a bound; `value` is the bound that was derived, in seconds."""

    verdict: Literal["confirmed", "refuted", "open"]
    value: float
    by: str


def recheck(problem: Problem, lower_bound: float, time_limit_s: float = 60.0) -> Recheck:
    """Derive a bound on the objective that is as high as `lower_bound`, if possible in time."""
    deadline = time.monotonic() + time_limit_s
    best = Recheck("open", 0.0, "nothing")
    for found in _attempts(problem, lower_bound, deadline):
        if found.verdict == "refuted":
            return found
        if found.value >= lower_bound * BELOW:
            return Recheck("confirmed", max(found.value, lower_bound * BELOW), found.by)
        best = max(best, found, key=lambda x: x.value)
    return best


def _attempts(problem: Problem, lower_bound: float, deadline: float) -> Iterator[Recheck]:
    simple = simple_bound(problem)
    yield Recheck("open", simple.value, simple.binding)
    throughput = problem.assumptions.objective == "throughput"
    if throughput and problem.num_units * problem.num_devices <= MAX_SPREAD:
        value = spread_freely(problem, max(0.0, deadline - time.monotonic()))
        yield Recheck("open", value, "linear program of work and memory")
    if throughput and problem.assumptions.communication == "relay":
        yield from _by_ideals(problem, lower_bound * BELOW, deadline)
    rows = problem.num_units * problem.num_devices**2
    if rows <= MAX_ROWS and time.monotonic() < deadline:
        yield _by_program(problem, lower_bound * BELOW, deadline)


def spread_freely(problem: Problem, time_limit_s: float) -> float:
    """The least bottleneck when units can be cut and put anywhere; 0 if none was found."""
    unit = simple_bound(problem).value or 1.0
    lp = pulp.LpProblem("spread", pulp.LpMinimize)
    bottleneck = lp.add_variable("T", 0)
    need = problem.need_bytes(position=1)
    work: list[list[tuple[pulp.LpVariable, float]]] = [[] for _ in range(problem.num_devices)]
    room: list[list[tuple[pulp.LpVariable, float]]] = [[] for _ in range(problem.num_devices)]
    for i in range(problem.num_units):
        shares = []
        for d in np.flatnonzero(np.isfinite(problem.time_s[:, i])).tolist():
            share = lp.add_variable(f"x_{d}_{i}", 0)
            shares.append(share)
            work[d].append((share, float(problem.time_s[d, i] / unit)))
            room[d].append((share, float(need[i])))
        lp += pulp.lpSum(shares) == 1
    for d, limit in enumerate(problem.memory_limit):
        lp += pulp.LpAffineExpression(work[d]) <= bottleneck
        if math.isfinite(limit) and limit > 0:
            lp += pulp.LpAffineExpression([(x, n / limit) for x, n in room[d]]) <= 1
    lp.setObjective(pulp.lpSum([bottleneck]))
    answer = mip_backend.minimise(lp, {}, time_limit_s=time_limit_s, gap=0.0)
    return 0.0 if answer.values is None or answer.interrupted else answer.values["T"] * unit


def _by_ideals(problem: Problem, bottleneck: float, deadline: float) -> Iterator[Recheck]:
    """Whether a plan keeps a bottleneck just below the bound, over all pairs of ideals."""
    ideals = Ideals.of(problem, MAX_IDEALS)
    states = States.number(problem)
    if ideals is None or len(ideals) ** 2 * states > MAX_WORK:
        return
    below = _Stages(problem, ideals, States(problem)).possible(bottleneck, deadline)
    exact = problem.assumptions.training or not problem.memory_binds  # the peak is left out
    if below is False or (below and exact):
        by = f"{len(ideals)} ideals x {states} states of devices"
        yield Recheck("refuted" if below else "open", bottleneck, by)


class _Stages:
    """All stages `I -> J` of a problem in relay."""

    def __init__(self, problem: Problem, ideals: Ideals, states: States) -> None:
        held = ideals.holds.astype(float)
        size = held.sum(axis=0)
        self.problem, self.states, self.held = problem, states, held
        self.within = held.T @ held == size[:, None]
        (latency, per_byte), crossing = states.wires[..., None], ideals.crossing
        self.move = latency * crossing.forward + per_byte * crossing.forward_bytes
        back_latency, back_per_byte = latency.swapaxes(0, 1), per_byte.swapaxes(0, 1)
        self.move += back_latency * crossing.backward + back_per_byte * crossing.backward_bytes

    def possible(self, bottleneck: float, deadline: float) -> bool | None:
        """Whether a plan has no stage above `bottleneck`; None where the time was up."""
        states, full = self.states, self.problem.assumptions.overlap == "full"
        num = self.held.shape[1]
        least = np.full((len(states.all), num), np.inf)
        for s, (_, g) in enumerate(states.all):
            if time.monotonic() > deadline:
                return None
            sent = np.full(num, np.inf)
            after = states.successors(s)
            if not len(after):
                sent[-1] = 0.0
            for r in after:
                move = self.move[g, states.all[r][1]]
                received = np.maximum(least[r], move) if full else least[r] + move
                sent = np.minimum(sent, np.where(received <= bottleneck, move, np.inf))
            compute = self._compute(g, int(states.arrays.position[s]))
            busy = np.maximum(compute, sent[None, :]) if full else compute + sent[None, :]
            best = busy.min(axis=1)
            least[s] = np.where(best <= bottleneck, best, np.inf)
        return bool(np.isfinite(least[:, 0]).any())

    def _compute(self, group: int, position: int) -> Floats:
        """Seconds of each stage on a group's device, infinite where none can run."""
        problem, time_s = self.problem, self.states.time_s[group]
        runs = np.isfinite(time_s)
        compute = self._sums(np.where(runs, time_s, 0.0))
        need = self._sums(problem.need_bytes(position))
        limit = problem.memory_limit[self.states.groups[group][0]]
        fits = self.within & (need <= limit * (1 + 1e-9)) & (self._sums(~runs * 1.0) < 0.5)
        return np.where(fits, compute, np.inf)

    def _sums(self, of_unit: Floats) -> Floats:
        total = of_unit @ self.held
        sums: Floats = total[None, :] - total[:, None]
        return sums


def _by_program(problem: Problem, value: float, deadline: float) -> Recheck:
    """Ask the integer program for a plan below the bound."""
    scale = value or 1.0
    model = formulation.build(problem, scale)
    model.lp += formulation.objective(model) <= value / scale
    left_s = max(0.0, deadline - time.monotonic())
    answer = mip_backend.minimise(model.lp, {}, time_limit_s=left_s, gap=0.0)
    says = f"integer program of {problem.num_units} units x {problem.num_devices} devices"
    if answer.infeasible:
        return Recheck("open", value, says)
    stages = None if answer.values is None else model.placement(answer.values)
    below = stages is not None and problem.cost(stages).objective_value <= value
    return Recheck("refuted" if below else "open", max(0.0, answer.bound * scale), says)
