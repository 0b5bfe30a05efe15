"""Better plans near a known one: units move, with all that depends on them, to the next stage.

Other methods look at the intervals of a few orders of the units. Units beside the main line are
then wherever the order put them. Here a unit moves one stage forward, with all that its own stage
reads for it, or one stage back, with all that reads it there: so no edge ever leads back. Only the
boundary between the two stages and their two times change. Now and then two stages swap devices.

It is simulated annealing (Kirkpatrick et al. 1983) on a high norm of the stages' times: close to
the bottleneck, but a stage just below it counts too.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from skyfx.solver.methods.heuristics.local_search_kernel import SearchArrays, shift
from skyfx.solver.methods.method import Candidate, MethodUpdate, SearchState
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem

HOT, COLD = 3e-3, 3e-5
"""Temperatures, in parts of the bottleneck."""

ROUNDS, ROUNDS_PER_UNIT = 200_000, 1_000
"""Moves of one cooling: at most, and per unit, as a small problem is soon cool."""

CHUNKS = 20
"""Temperatures of one cooling; after each it looks at the clock."""

HOTTER = 1e-2
"""The first temperature from another order of devices."""

LAST = 0.2
"""How often a device is put last."""

TOURS, PART = 4, 0.4
"""Orders that are tried, in this part of the time that is left."""

COOLINGS = 4
"""At most; one without a better plan is the last."""

MAX_UNITS, MAX_STAGES = 8000, 256
"""Beyond that a cooling touches each too rarely, and takes too long."""


def local_search(task: SearchState) -> Iterator[MethodUpdate]:
    """Improve the best plan so far by small changes."""
    search = _Shifts(task)
    for _ in range(COOLINGS):
        before = search.best.value
        yield from search.cool(*_plan(task.problem, search.best), HOT)
        if search.best.value == before:
            break
    yield MethodUpdate(remark=f"{search.moves} moves")


def restarted_local_search(task: SearchState) -> Iterator[MethodUpdate]:
    """Improve the best plan so far from plans that begin or end with another device.

    That device is idle at first; its units go to the stage beside it. The slowest devices come
    first: masks and position biases are work for them, before all that reads these.
    """
    search = _Shifts(task)
    until_s = task.limits.left_s * (1 - PART)
    slowest = np.argsort(-search.tables.time_s.sum(axis=1), kind="stable")
    for tour in range(TOURS):
        if task.limits.left_s < until_s:
            break
        devices, stage_of = search.elsewhere(slowest[tour % len(slowest)])
        yield from search.cool(devices, stage_of, HOTTER)
        remark = f"{search.moves} moves from {tour + 1} other orders"
        yield MethodUpdate(remark=remark)


class _Shifts:
    """The best plan, and the tables for moves."""

    def __init__(self, task: SearchState) -> None:
        assert task.incumbent is not None
        self.task, self.problem, self.best = task, task.problem, task.incumbent
        self.tables = _tables(task.problem)
        self.random = np.random.default_rng(task.limits.seed)
        self.moves = 0

    def cool(self, devices: Any, stage_of: Any, hot: float) -> Iterator[MethodUpdate]:
        """Cool down once from a plan."""
        rounds = min(ROUNDS, ROUNDS_PER_UNIT * self.problem.num_units)
        for chunk in range(CHUNKS):
            if self.task.limits.left_s <= 0:
                return
            heat = hot * (COLD / hot) ** (chunk / CHUNKS)
            seed = int(self.random.integers(2**31))
            self.moves += shift(devices, stage_of, heat, rounds // CHUNKS, seed, self.tables)
            found = Candidate.of(self.problem, _placement(devices, stage_of))
            if found is not None and found.value < self.best.value:
                self.best = found
                yield MethodUpdate(stages=found.stages, remark=f"{self.moves} moves")

    def elsewhere(self, d: int) -> tuple[Any, Any]:
        """The best plan with a device put first, now and then last, with nothing to do."""
        devices, stage_of = _plan(self.problem, self.best)
        if d in devices:
            k = int(np.flatnonzero(devices == d)[0])
            stage_of[stage_of == k] = k - 1 if k else 1
            stage_of -= stage_of > k
            devices = np.delete(devices, k)
        if self.random.random() < LAST:
            return np.append(devices, d), stage_of
        return np.insert(devices, 0, d), stage_of + 1


def _plan(problem: Problem, plan: Candidate) -> tuple[Any, Any]:
    """The device of each stage, and the stage of each unit."""
    stage_of = np.zeros(problem.num_units, dtype=np.int64)
    for k, (_, part) in enumerate(plan.stages):
        stage_of[list(part)] = k
    return np.array([d for d, _ in plan.stages], dtype=np.int64), stage_of


def _placement(devices: Any, stage_of: Any) -> UnitPlacement:
    return [(int(d), np.flatnonzero(stage_of == k).tolist()) for k, d in enumerate(devices)]


def _tables(problem: Problem) -> SearchArrays:
    num = problem.num_devices
    touched: list[list[int]] = [[] for _ in range(problem.num_units)]
    for v, value in enumerate(problem.values):
        for unit in {value.producer, *value.consumers}:
            touched[unit].append(v)
    sizes = [
        (v.output_bytes, v.gradient_bytes, 1.0, float(v.gradient_bytes > 0)) for v in problem.values
    ]
    return SearchArrays(
        *_rows(problem.reads),
        *_rows(problem.readers),
        *_rows(touched),
        np.array([-1 if v.is_input else v.producer for v in problem.values], dtype=np.int64),
        *_rows([list(v.consumers) for v in problem.values]),
        np.array([v.is_output for v in problem.values], dtype=np.bool_),
        np.array(sizes).reshape(-1, 4).T.copy(),
        np.minimum(problem.time_s, 1e30),
        np.array([problem.need_bytes(p) for p in range(1, num + 1)]),
        np.minimum(problem.memory_limit, 1e300) - problem.peak_bytes.max(),
        problem.wires,
        problem.assumptions.overlap == "full",
    )


def _rows(lists: list[list[int]]) -> tuple[Any, Any]:
    """Where each list begins, and all of them in one."""
    at = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return at, np.array([x for row in lists for x in row], dtype=np.int64)
