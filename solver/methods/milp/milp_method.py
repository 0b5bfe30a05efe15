"""The method for everything: the integer linear program of `ilp.py`, from the best plan so far."""

import math
from collections.abc import Iterator

from skyfx.solver.methods import mip_backend
from skyfx.solver.methods.limits import Progress
from skyfx.solver.methods.method import Bound, MethodUpdate, SearchState
from skyfx.solver.methods.milp import formulation
from skyfx.solver.problem.infeasibility import nothing_fits
from skyfx.solver.problem.tolerances import OPTIMALITY_TOLERANCE

ROWS_PER_S = 40_000
"""Constraints of the integer program that PuLP takes in a second, about."""

MAX_ROWS = 100_000
"""With more, HiGHS would look at the clock too rarely, and prove nothing."""


def integer_program(task: SearchState) -> Iterator[MethodUpdate]:
    """Solve the integer program, unless writing it down alone would pass the time limit."""
    problem, limits = task.problem, task.limits
    # Writing the program down takes time of its own, and cannot be stopped half-way.
    rows = problem.num_units * problem.num_devices**2
    size = f"{problem.num_units} units x {problem.num_devices} devices"
    if rows > MAX_ROWS or rows / ROWS_PER_S > limits.left_s:
        yield MethodUpdate(remark=f"{size} are too many to write down in good time")
        return
    scale = (task.incumbent.cost.bottleneck_s if task.incumbent else task.bound.value) or 1.0
    model = formulation.build(problem, scale)
    if task.incumbent is not None and problem.assumptions.objective == "throughput":
        model.bottleneck.upBound = 1 + OPTIMALITY_TOLERANCE
    answer = mip_backend.minimise(
        model.lp,
        model.start(task.incumbent.stages) if task.incumbent else {},
        time_limit_s=limits.left_s,
        gap=limits.gap,
        seed=limits.seed,
        solver=limits.solver,
        progress=_scaled(task, scale),
    )
    yield MethodUpdate(
        stages=None if answer.values is None else model.placement(answer.values),
        bound=Bound(answer.bound * scale, "integer program"),
        infeasible=nothing_fits(problem) if answer.infeasible and answer.values is None else "",
        interrupted=answer.interrupted,
        remark=f"{size}, {limits.solver}",
    )


def _scaled(task: SearchState, scale: float) -> Progress | None:
    """Tell the best plan and bound there are, not only those of the integer program itself."""
    tell = task.limits.progress
    best = math.inf if task.incumbent is None else task.incumbent.value
    return tell and (
        lambda value, bound: tell(min(best, value * scale), max(task.bound.value, bound * scale))
    )
