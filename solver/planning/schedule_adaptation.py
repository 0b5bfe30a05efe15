"""The fifth step of planning: a plan for `generated`, `tapered` or `interleaved`.

The search finds the best plan under 1f1b and its memory. Here that plan gets counts of its own,
and maybe other stages. The bound of the search holds only for what such a plan cannot avoid: it may
keep fewer micro-batches in flight, and with several stages per device it is not a plan of the kind
that the bound is about.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from skyfx.solver.core.plan import SCHEDULES_WITH_COUNTS, Assumptions, Strategy
from skyfx.solver.core.schedule import in_flight_counts, orders
from skyfx.solver.core.units import seconds
from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.cost_model import Placement, evaluate
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.costs.simulator import run_schedule, simulate
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Bound, Candidate
from skyfx.solver.methods.portfolio import Portfolio
from skyfx.solver.planning.plan_builder import ScheduledStages
from skyfx.solver.problem.infeasibility import explain
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import OneInFlightProblem, Problem
from skyfx.solver.refinement.in_flight import Live, generate
from skyfx.solver.refinement.interleaving import interleaved
from skyfx.solver.refinement.memory_headroom import MemoryHeadroom
from skyfx.solver.refinement.step_annealing import shortened
from skyfx.solver.refinement.tapering import tapered

LEAST_S = 2.0
"""Seconds for a bound on plans with other micro-batches in flight."""

NEAR = 0.005
"""How near such a bound has to be to the best plan."""


def search_assumptions(assumptions: Assumptions) -> Assumptions:
    """The assumptions of the search: 1f1b instead of a schedule that is made afterwards."""
    if assumptions.schedule in SCHEDULES_WITH_COUNTS:
        return replace(assumptions, schedule="1f1b")
    return assumptions


@contextmanager
def as_schedule_error(problem: Problem) -> Iterator[None]:
    """Within it, an infeasible search under 1f1b is no proof for a schedule made afterwards.

    With one micro-batch in flight on every stage, as if there were only one, there may be plans.

    Raises:
        NoPlanError: no plan exists under 1f1b, though there may be one under the schedule.
    """
    try:
        yield
    except InfeasibleError as error:
        alone = replace(search_assumptions(problem.assumptions), microbatches=1)
        made_afterwards = problem.assumptions.schedule in SCHEDULES_WITH_COUNTS
        if not made_afterwards or explain(Problem(problem.graph, problem.cluster, alone)):
            raise
        raise NoPlanError(
            f"no plan was found for the schedule {problem.assumptions.schedule}, which begins from "
            f"one for 1f1b. For that, {error}"
        ) from None


def adapt_schedule(
    problem: Problem, best: Candidate, strategy: Strategy, *, enforce_peaks: bool
) -> ScheduledStages:
    """The stages under the schedule that the problem asks for.

    Args:
        problem: with the schedule.
        best: the best plan under `search_assumptions`.
        strategy: a baseline keeps its stages with `tapered`.
        enforce_peaks: whether the stages fit at their peaks, and have to.
    """
    assumptions = problem.assumptions
    if assumptions.schedule not in SCHEDULES_WITH_COUNTS or not assumptions.training:
        return ScheduledStages(best)  # in inference there is no backward to take turns with
    if assumptions.communication == "host":  # no step is simulated there
        counts = in_flight_counts("1f1b", len(best.stages), assumptions.microbatches)
        return ScheduledStages(best, counts)
    usual, placement = search_assumptions(assumptions), problem.placement(best.stages)
    peaks = peak_bytes(problem.graph, problem.cluster, placement, usual)
    usual_peaks = {name: peak for (name, _), peak in zip(placement, peaks, strict=True)}
    stages, first = _stages_for(problem, best.stages, usual_peaks, strategy)
    made, fits = _with_counts(problem, best, stages, first, usual_peaks)
    if enforce_peaks and not fits:
        made, _ = _with_counts(problem, best, best.stages, None, usual_peaks)
    usual_s = simulate(problem.graph, problem.cluster, placement, usual).step_s
    said = ", ".join(map(str, made.in_flight or ()))
    return replace(
        made,
        usual_step_s=usual_s,
        remark=f"{assumptions.schedule}: with {said} in flight, a simulated step takes "
        f"{seconds(made.step_s)}, one of 1f1b {seconds(usual_s)}",
    )


def _stages_for(
    problem: Problem, stages: UnitPlacement, usual_peaks: dict[str, float], strategy: Strategy
) -> tuple[UnitPlacement, Live | None]:
    """The stages that the schedule has the shortest step with, and counts to begin with."""
    assumptions = problem.assumptions
    is_tapered = assumptions.schedule == "tapered" and strategy == "optimal"
    if assumptions.schedule == "interleaved":
        return interleaved(problem, stages, usual_peaks) or (stages, None)
    if problem.memory_binds and (assumptions.objective == "step" or is_tapered):
        return shortened(problem, stages, usual_peaks)
    return (tapered(problem, stages) if is_tapered else stages), None


def _with_counts(
    problem: Problem,
    best: Candidate,
    stages: UnitPlacement,
    first: Live | None,
    usual_peaks: dict[str, float],
) -> tuple[ScheduledStages, bool]:
    """The stages with the counts that make the shortest step, and whether they fit."""
    assumptions, placement = problem.assumptions, problem.placement(stages)
    times = ActionTimes.of(problem.graph, problem.cluster, placement, assumptions)
    headroom = MemoryHeadroom(problem, placement, usual_peaks)
    made = generate(times, assumptions.microbatches, headroom.fits, first)
    cost = evaluate(problem.graph, problem.cluster, placement, assumptions, made.live)
    timeline = run_schedule(times, orders(made.live, assumptions.microbatches, times.devices))
    scheduled = ScheduledStages(Candidate(stages, cost, best.method), made.live, made.step_s)
    return scheduled, headroom.fits(made.live, timeline)


def certify(problem: Problem, placement: Placement, bound: Bound, searched_s: float) -> Bound:
    """The last step of planning: a bound that holds under the schedule, whatever is in flight.

    Args:
        problem: with the schedule, and the graph that the bound of the search is for.
        placement: the stages.
        bound: that of the search.
        searched_s: seconds of the search; another one for a bound takes about as long.
    """
    assumptions = problem.assumptions
    if assumptions.schedule == "interleaved":
        return simple_bound(problem)
    is_search_schedule = assumptions.schedule not in SCHEDULES_WITH_COUNTS
    if is_search_schedule or not assumptions.training or not problem.memory_binds:
        return bound
    relaxed = OneInFlightProblem(problem.graph, problem.cluster, search_assumptions(assumptions))
    limits = Limits(began=time.monotonic(), time_limit_s=max(LEAST_S, searched_s), gap=NEAR)
    known = Candidate.of(relaxed, relaxed.units_of(placement))
    try:
        return Portfolio(relaxed, limits, known).run().bound
    except NoPlanError:
        return simple_bound(problem)
