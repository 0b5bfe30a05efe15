"""Planning where memory may be short: stages recompute some of their segments.

search on times without, bytes with everything recomputed    a bound; if it fits, the plan
search without recomputation                                 if as good as the bound, the plan
move the cuts, as stages that recompute take longer          cut_search.py
choose for each stage what has to be recomputed              segment_choice.py
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from skyfx.solver.core.graph import Graph
from skyfx.solver.costs.recomputation import can_recompute, with_recomputation, without_kept
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate
from skyfx.solver.methods.portfolio import SearchResult
from skyfx.solver.planning.peak_repair import does_not_fit, simple_plans
from skyfx.solver.planning.search import Baselines, has_plan_soon, possible, search
from skyfx.solver.problem.infeasibility import advised
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import OneInFlightProblem, Problem
from skyfx.solver.problem.tolerances import OPTIMALITY_TOLERANCE
from skyfx.solver.refinement.cut_search import plans_near
from skyfx.solver.refinement.peak_excess import excesses
from skyfx.solver.refinement.segment_choice import Recomputing, SegmentChoice
from skyfx.solver.refinement.segment_runs import SegmentRuns, all_segments

PlainSearch = Callable[[Limits], SearchResult]
"""The best plan without recomputation, by the memory that lasts."""

LEAST_PART = 0.25
"""Of the time limit, for each search."""


def may_recompute(problem: Problem) -> bool:
    """Whether the planner may recompute, where memory is short."""
    return problem.assumptions.recompute == "auto" and _is_possible(problem)


def recomputing_always(problem: Problem) -> Problem:
    """The problem in which all that is worth it is recomputed, if that is asked for.

    Raises:
        ValueError: nothing can be recomputed.
    """
    if problem.assumptions.recompute != "always":
        return problem
    graph = problem.graph
    if not _is_possible(problem):
        raise ValueError(
            f"recompute: found 'always', expected 'auto' or 'never': {_why_not(problem)}"
        )
    kinds = {device.type for device in problem.cluster.devices}
    return replace(problem, graph=with_recomputation(graph, all_segments(graph, kinds)))


def bounded_problem(problem: Problem, planned: Graph) -> Problem:
    """The problem that the bound of a plan is for.

    Args:
        problem: without recomputation.
        planned: the graph with what the plan recomputes.
    """
    if may_recompute(problem) and problem.memory_binds:
        return relaxed(problem)
    return replace(problem, graph=planned)


def relaxed(problem: Problem) -> Problem:
    """The problem of which no plan that recomputes is better than the best: nothing is kept."""
    graph = without_kept(problem.graph)
    return OneInFlightProblem(graph, problem.cluster, problem.assumptions)


def search_recomputing(
    problem: Problem, plain: PlainSearch, limits: Limits, *, enforce_peaks: bool
) -> tuple[Problem, SearchResult]:
    """The best plan with recomputation or without.

    Args:
        problem: without recomputation.
        plain: the search for its best plan.
        limits: those of a search.
        enforce_peaks: whether peaks have to fit.

    Returns:
        The problem that the plan is for, and the plan with a bound that holds for all plans that
        recompute anything.

    Raises:
        InfeasibleError: no plan can exist, whatever is recomputed.
        NoPlanError: none was found.
        KeyboardInterrupt: Ctrl-C came before there was a plan.
    """
    attempt = _Attempt(plain)

    def fits(stages: UnitPlacement) -> bool:
        return not (enforce_peaks and excesses(problem, stages))

    if not problem.memory_binds:  # by what lasts; peaks may still be too large
        best = attempt.result(limits)
        if best is not None and fits(best.incumbent.stages):
            return problem, best
    ideal = relaxed(problem)
    near = _search_ideal(ideal, _part(limits))
    if near is not None:
        same = Candidate.of(problem, near.incumbent.stages, near.incumbent.method)
        if same is not None and fits(same.stages):
            if limits.progress is not None:
                limits.progress(same.value, near.bound.value)
            return problem, replace(near, incumbent=same)
        if near.interrupted:
            raise KeyboardInterrupt
    bound = simple_bound(ideal) if near is None else near.bound
    best, fitting = attempt.result(_part(limits)), None
    if best is not None and fits(best.incumbent.stages):
        fitting = replace(best, bound=bound)
        if near is None or _is_enough(fitting, limits):
            return problem, fitting
    stages = [found.incumbent.stages for found in (near, best) if found is not None]
    more = partial(_most_recomputed, problem, limits)
    made, interrupted = _best(problem, stages, more, enforce_peaks=enforce_peaks)
    if made is not None and (fitting is None or made.candidate.value < fitting.incumbent.value):
        remarks = () if near is None else near.remarks
        return made.problem, SearchResult(made.candidate, bound, remarks, interrupted)
    if fitting is not None:
        return problem, replace(fitting, interrupted=interrupted)
    if interrupted:
        raise KeyboardInterrupt
    raise NoPlanError(_advised(problem, attempt))


def _part(limits: Limits) -> Limits:
    """The limits of one search of several: half of the time that is left, and not too little."""
    least_s = LEAST_PART * limits.time_limit_s
    return replace(limits, began=time.monotonic(), time_limit_s=max(limits.left_s / 2, least_s))


@dataclass(slots=True)
class _Attempt:
    """The search without recomputation, made once, when it is needed."""

    plain: PlainSearch
    fault: InfeasibleError | NoPlanError | None = None
    found: SearchResult | None = None

    def result(self, limits: Limits) -> SearchResult | None:
        """The best plan by `memory_bytes`, None where there is none."""
        if self.found is None and self.fault is None:
            try:
                self.found = self.plain(limits)
            except (InfeasibleError, NoPlanError) as error:
                self.fault = error
        return self.found


def _advised(problem: Problem, attempt: _Attempt) -> str:
    """What to say where nothing was found, with what would help."""
    said = "no plan was found that fits with recomputation, though one may exist. Without it, "
    if isinstance(attempt.fault, InfeasibleError):
        return advised(problem, f"{said}{attempt.fault}", has_plan_soon)
    if attempt.found is None:
        return f"{said}{attempt.fault}"
    return f"{said}{does_not_fit(problem, attempt.found.incumbent)}"


def _search_ideal(ideal: Problem, limits: Limits) -> SearchResult | None:
    """None where no plan was found in time; raises `InfeasibleError` where none can exist."""

    def tell(_: float, bound: float) -> None:  # its plan may not fit
        if limits.progress is not None:
            limits.progress(math.inf, bound)

    try:
        told = replace(limits, progress=tell)
        return search(possible(ideal), told, Baselines.of(ideal), briefly=True)
    except NoPlanError:
        return None


def _is_enough(found: SearchResult, limits: Limits) -> bool:
    enough = 1 + max(limits.gap, OPTIMALITY_TOLERANCE)
    return found.interrupted or found.incumbent.value <= enough * found.bound.value


def _best(
    problem: Problem,
    starts: Iterable[UnitPlacement],
    more: Callable[[], UnitPlacement | None],
    *,
    enforce_peaks: bool,
) -> tuple[Recomputing | None, bool]:
    """The best plan near some stages, and whether Ctrl-C ended the search for it.

    Args:
        problem: without recomputation.
        starts: the stages.
        more: other stages, where none is found near these.
        enforce_peaks: whether peaks have to fit.
    """
    kinds = {device.type for device in problem.cluster.devices}
    runs = SegmentRuns.of(problem.graph, kinds)
    choice = SegmentChoice(problem, runs, enforce_peaks=enforce_peaks)
    found, interrupted = list[Recomputing](), False
    try:
        for stages in starts:
            found.extend(plans_near(choice, stages))
        simple = (choice.choose(stages) for _, stages in simple_plans(problem))
        found.extend(one for one in simple if one is not None and not one.over)
        if not found and (others := more()) is not None:
            found.extend(plans_near(choice, others))
    except KeyboardInterrupt:
        interrupted = True
    return min(found, key=lambda one: one.candidate.value, default=None), interrupted


def _most_recomputed(problem: Problem, limits: Limits) -> UnitPlacement | None:
    """The stages of the best plan that recomputes all it can; None where none is found."""
    kinds = {device.type for device in problem.cluster.devices}
    graph = with_recomputation(problem.graph, all_segments(problem.graph, kinds))
    most = Problem(graph, problem.cluster, problem.assumptions)
    try:
        again = replace(_part(limits), progress=None)
        found = search(possible(most), again, Baselines.of(most), briefly=True)
    except (InfeasibleError, NoPlanError):
        return None
    return problem.units_of(most.placement(found.incumbent.stages))


def _is_possible(problem: Problem) -> bool:
    return _why_not(problem) == ""


def _why_not(problem: Problem) -> str:
    if not problem.assumptions.training:
        return "inference keeps nothing"
    if problem.assumptions.communication != "relay":
        return "through the host there is no pipeline that keeps anything"
    if not can_recompute(problem.graph):
        return "the graph does not say what its nodes keep, capture the model again"
    return ""
