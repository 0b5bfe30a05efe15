"""Plans whose peaks fit, where the cost model's `memory_bytes` alone would not say so."""

import time
from collections.abc import Callable
from dataclasses import replace

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Assumptions, Plan
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.methods.method import Candidate
from skyfx.solver.planning.planner import Solution, replanned
from skyfx.solver.planning.schedule_adaptation import (
    adapt_schedule,
    as_schedule_error,
    search_assumptions,
)
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.peak_annealing import RESERVE, Excess, excesses, fitting

__all__: list[str] = ["solve_within"]

Portfolio = Callable[[Graph, Cluster, Assumptions], Solution]

FITTING_S = 10.0
"""Seconds in which a plan is changed until it fits."""

NEAR = 0.02
"""A plan that fits and is this near the bound is good enough not to search again."""


def solve_within(
    graph: Graph,
    cluster: Cluster,
    assumptions: Assumptions,
    search: Portfolio,
) -> Solution:
    """Search; where a peak of the plan does not fit, change it until all of them do.

    Plans are changed from the best one, and from the best one with less memory on all devices. The
    bound is that of the search, which knows what lasts alone: it holds for these plans too.

    Raises:
        NoPlanError: no such plan was found.
        InfeasibleError: none exists even by what lasts alone.
    """
    asked = Problem(graph, cluster, assumptions)
    with as_schedule_error(asked):
        found = _within(Problem(graph, cluster, search_assumptions(assumptions)), search)
    return replace(found, plan=adapt_schedule(found.plan, asked))


def _within(problem: Problem, search: Portfolio) -> Solution:
    solution = search(problem.graph, problem.cluster, problem.assumptions)
    plan = solution.plan
    over = excesses(problem, problem.stages(plan))
    if solution.interrupted or not over:
        return solution
    best = None
    if plan.solver.strategy == "optimal":
        best = _fitted(problem, plan)
        if best is None or best.value > (1 + NEAR) * plan.lower_bound:
            best = _better(best, _fitted_from_less(problem, plan, search))
    if best is None:
        worst = max(over, key=lambda one: one.peak_bytes / one.limit_bytes)
        raise _none(worst, problem.assumptions)
    return replace(solution, plan=replanned(plan, problem, best))


def _fitted(problem: Problem, plan: Plan) -> Candidate | None:
    return fitting(problem, problem.stages(plan), time.monotonic() + FITTING_S)


def _fitted_from_less(problem: Problem, plan: Plan, search: Portfolio) -> Candidate | None:
    """From the best plan with as much less memory as this one's peaks are above what lasts."""
    part = min(
        stage.memory_bytes / ((1 + RESERVE) * stage.peak_bytes)
        for stage in plan.stages
        if stage.peak_bytes
    )
    devices = tuple(
        replace(d, memory_bytes=None if d.memory_bytes is None else part * d.memory_bytes)
        for d in problem.cluster.devices
    )
    cluster = replace(problem.cluster, devices=devices)
    try:
        found = search(problem.graph, cluster, problem.assumptions)
    except (InfeasibleError, NoPlanError):
        return None
    return _fitted(problem, found.plan)


def _better(one: Candidate | None, other: Candidate | None) -> Candidate | None:
    found = [candidate for candidate in (one, other) if candidate is not None]
    return min(found, key=lambda candidate: candidate.value, default=None)


def _none(worst: Excess, assumptions: Assumptions) -> NoPlanError:
    return NoPlanError(
        f"no plan was found that fits at its peak: the stage on {worst.device!r} would take "
        f"{worst.peak_bytes / 2**20:.1f} MiB for moments (and a tenth in reserve), its limit is "
        f"{worst.limit_bytes / 2**20:.1f} MiB. Raise its memory_bytes, or make micro-batches "
        f"smaller (num_microbatches, now {assumptions.microbatches})"
    )
