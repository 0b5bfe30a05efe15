"""Planning where memory may be short: stages recompute some of their segments.

search on times without, bytes with everything recomputed    a bound; if it fits, the plan
search without recomputation                                 if as good as the bound, the plan
move the cuts, as stages that recompute take longer          annealing on estimates
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
from skyfx.solver.methods.heuristics.annealing import Assessed, Cooling
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate
from skyfx.solver.methods.portfolio import SearchResult
from skyfx.solver.planning.peak_repair import simple_plans
from skyfx.solver.planning.search import Baselines, possible, search
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import OneInFlightProblem, Problem
from skyfx.solver.problem.tolerances import OPTIMALITY_TOLERANCE
from skyfx.solver.refinement.cut_moves import Segments, anneal_cuts, segments_of, stages_of
from skyfx.solver.refinement.peak_annealing import COLD, EXCESS_WEIGHT, HOT, MOVES_EACH, excesses
from skyfx.solver.refinement.segment_choice import Recomputing, SegmentChoice
from skyfx.solver.refinement.segment_runs import all_segments

PlainSearch = Callable[[Limits], tuple[SearchResult, bool]]
"""The best plan without recomputation, and whether it had to be repaired to fit at its peaks."""

ANNEALING_S = 5.0
"""Seconds in which cuts are moved."""

MOVES = 2000
"""At most."""

NUM_TRIED = 12
"""Of the stages that are about the best, so many get their segments."""

UNLIKE = 0.002
"""By which part the next of them has to cost more."""


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
    if not problem.memory_binds:  # by what lasts; peaks may still be too large
        best, is_repaired = attempt.result(limits)
        if best is not None and not is_repaired:
            return problem, best
    ideal = relaxed(problem)
    near = _search_ideal(ideal, limits)
    if near is not None:
        fits = Candidate.of(problem, near.incumbent.stages, near.incumbent.method)
        if fits is not None and not (enforce_peaks and excesses(problem, fits.stages)):
            if limits.progress is not None:
                limits.progress(fits.value, near.bound.value)
            return problem, replace(near, incumbent=fits)
        if near.interrupted:
            raise KeyboardInterrupt
    bound = simple_bound(ideal) if near is None else near.bound
    best, _ = attempt.result(replace(limits, began=time.monotonic()))
    if best is not None:
        best = replace(best, bound=bound)
        if near is None or _is_enough(best, limits):
            return problem, best
    stages = [] if near is None else [near.incumbent.stages]
    stages += [] if best is None else [best.incumbent.stages]
    more = partial(_most_recomputed, problem, limits)
    made, interrupted = _best(problem, stages, more, enforce_peaks=enforce_peaks)
    if made is not None and (best is None or made.candidate.value < best.incumbent.value):
        remarks = () if near is None else near.remarks
        return made.problem, SearchResult(made.candidate, bound, remarks, interrupted)
    if best is not None:
        return problem, replace(best, interrupted=interrupted)
    if interrupted:
        raise KeyboardInterrupt
    raise NoPlanError(
        "no plan was found that fits with recomputation, though one may exist. Without it, "
        f"{attempt.fault}"
    )


@dataclass(slots=True)
class _Attempt:
    """The search without recomputation, made once, when it is needed."""

    plain: PlainSearch
    fault: InfeasibleError | NoPlanError | None = None
    _found: tuple[SearchResult | None, bool] | None = None

    def result(self, limits: Limits) -> tuple[SearchResult | None, bool]:
        """The best plan, None where there is none, and whether its peaks had to be repaired."""
        if self._found is None:
            try:
                self._found = self.plain(limits)
            except (InfeasibleError, NoPlanError) as error:
                self._found, self.fault = (None, False), error
        return self._found


def _search_ideal(ideal: Problem, limits: Limits) -> SearchResult | None:
    """None where no plan was found in time; raises `InfeasibleError` where none can exist."""

    def tell(_: float, bound: float) -> None:  # its plan may not fit
        if limits.progress is not None:
            limits.progress(math.inf, bound)

    try:
        return search(possible(ideal), replace(limits, progress=tell), Baselines.of(ideal))
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
    choice = SegmentChoice(problem, enforce_peaks=enforce_peaks)
    found, interrupted = list[Recomputing](), False

    def try_these(several: Iterable[UnitPlacement]) -> None:
        for stages in several:
            chosen = choice.choose(stages)
            if chosen is not None and not chosen.over:
                found.append(chosen)

    try:
        for stages in starts:
            busy = [(device, units) for device, units in stages if len(units)]
            try_these([busy, *_annealed(choice, busy)])
        try_these(stages for _, stages in simple_plans(problem))
        if not found and (others := more()) is not None:
            try_these([others, *_annealed(choice, others)])
    except KeyboardInterrupt:
        interrupted = True
    return min(found, key=lambda one: one.candidate.value, default=None), interrupted


def _most_recomputed(problem: Problem, limits: Limits) -> UnitPlacement | None:
    """The stages of the best plan that recomputes all it can; None where none is found."""
    kinds = {device.type for device in problem.cluster.devices}
    graph = with_recomputation(problem.graph, all_segments(problem.graph, kinds))
    most = Problem(graph, problem.cluster, problem.assumptions)
    try:
        again = replace(limits, began=time.monotonic(), progress=None)
        found = search(possible(most), again, Baselines.of(most))
    except (InfeasibleError, NoPlanError):
        return None
    return problem.units_of(most.placement(found.incumbent.stages))


def _annealed(choice: SegmentChoice, stages: UnitPlacement) -> list[UnitPlacement]:
    """Stages near the given ones that about cost least with what they have to recompute."""
    problem = choice.problem
    order, segments = segments_of(stages)
    unit = problem.cost(stages).objective_value or 1.0
    seen: dict[Segments, float] = {}

    def assess(segments: Segments) -> Assessed[Segments]:
        value, over = choice.estimate(stages_of(order, *segments))
        score = value / unit + EXCESS_WEIGHT * over
        seen[segments] = score + bool(over)  # one that fits comes first, mostly
        return Assessed(score, math.inf if over else value, segments)

    deadline = time.monotonic() + ANNEALING_S
    cooling = Cooling(min(MOVES, MOVES_EACH * len(order)), HOT, COLD, deadline)
    anneal_cuts(problem, segments, assess, cooling)
    nearest, last = list[Segments](), 0.0
    for one in sorted(seen, key=seen.__getitem__):
        if last * (1 + UNLIKE) < seen[one] < math.inf and len(nearest) < NUM_TRIED:
            nearest.append(one)
            last = seen[one]
    return [stages_of(order, *one) for one in nearest]


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
