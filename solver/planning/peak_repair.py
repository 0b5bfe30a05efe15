"""The third step of planning: a plan whose peaks fit its devices.

The search knows the memory that lasts (`memory_bytes`). A peak is higher, for moments. Where one
does not fit, the plan is changed until all of them do: first the best plan, then the best plan for
devices with less memory. The bound of the search holds for these plans too.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

from skyfx.solver.core.plan import Strategy
from skyfx.solver.core.units import size
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.methods.heuristics.baselines import dynamic, even
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate
from skyfx.solver.methods.portfolio import SearchResult
from skyfx.solver.planning.search import (
    Baselines,
    cheapest,
    compile_problem,
    possible,
    search,
)
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.relaxations import smaller_microbatches
from skyfx.solver.refinement.cut_search import SEARCH_S, plans_near
from skyfx.solver.refinement.peak_excess import RESERVE, Excess, excesses
from skyfx.solver.refinement.segment_choice import SegmentChoice
from skyfx.solver.refinement.segment_runs import SegmentRuns

SOON_S = 2.0
"""Seconds in which a plan is changed until it fits, once Ctrl-C has come."""

NEAR = 0.02
"""A plan that fits and is this near the bound is good enough not to search again."""


def knows_peaks(problem: Problem) -> bool:
    """Whether the graph says enough to predict peaks, and a device has a limit to hold them to.

    A graph from `skyfx capture` does. So does any that gives sizes of saved values, gradients or
    workspace. Communication through the host has no prediction.
    """
    graph = problem.graph
    return (
        problem.assumptions.communication == "relay"
        and any(device.memory_bytes is not None for device in problem.cluster.devices)
        and (
            graph.measured is not None
            or any(n.saved_bytes or n.gradient_bytes or n.workspace_bytes for n in graph.nodes)
        )
    )


def repair_peaks(
    problem: Problem, found: SearchResult, limits: Limits, strategy: Strategy
) -> SearchResult:
    """The search's plan where its peaks fit, else one near it of which they do.

    Args:
        problem: with the true limits of the devices.
        found: the result of the search.
        limits: those of the search; a second search has as long again.
        strategy: a baseline is not changed.

    Raises:
        NoPlanError: no plan whose peaks fit was found.
        KeyboardInterrupt: Ctrl-C came before such a plan.
    """
    plan = found.incumbent
    over = excesses(problem, plan.stages)
    if not over:
        return found
    if strategy != "optimal":
        raise _does_not_fit(over, f"the {strategy} split is not changed, use strategy 'optimal'")
    best, interrupted = None, found.interrupted
    choice = _without_segments(problem)
    try:
        best = _fitted(choice, plan, SOON_S if interrupted else SEARCH_S)
        is_near = best is not None and best.value <= (1 + NEAR) * found.bound.value
        if not is_near and not interrupted:
            best = cheapest((best, _fitted_from_less(choice, plan, limits)))
    except KeyboardInterrupt:
        interrupted = True
    best = cheapest((best, *_fitting_simple_plans(problem)))
    if best is None and interrupted:
        raise KeyboardInterrupt
    if best is None:
        raise does_not_fit(problem, plan)
    return replace(found, incumbent=best, interrupted=interrupted)


def does_not_fit(problem: Problem, plan: Candidate) -> NoPlanError:
    """That none was found which fits at its peaks: where this one does not, and what would help."""
    now = f"num_microbatches, now {problem.assumptions.microbatches}"
    cure = "give it more memory_bytes, or make micro-batches smaller"
    fewer = smaller_microbatches(problem, _fits_soon) or now
    return _does_not_fit(excesses(problem, plan.stages), f"{cure} ({fewer})")


def simple_plans(problem: Problem) -> Iterator[tuple[str, UnitPlacement]]:
    """All on one device, the even split and the heuristic's, with the names of their methods."""
    everything = range(problem.num_units)
    made: list[tuple[str, UnitPlacement | None]] = [
        ("even", even(problem)),
        ("dynamic", dynamic(problem)),
        *(("best single device", [(d, everything)]) for d in range(problem.num_devices)),
    ]
    yield from ((method, stages) for method, stages in made if stages is not None)


def _fitting_simple_plans(problem: Problem) -> Iterator[Candidate]:
    """Those whose peaks fit."""
    for method, stages in simple_plans(problem):
        candidate = Candidate.of(problem, stages, method)
        if candidate is not None and not excesses(problem, candidate.stages):
            yield candidate


def _without_segments(problem: Problem) -> SegmentChoice:
    return SegmentChoice(problem, SegmentRuns.none(problem.graph), enforce_peaks=True)


def _fitted(choice: SegmentChoice, plan: Candidate, seconds: float) -> Candidate | None:
    return cheapest(found.candidate for found in plans_near(choice, plan.stages, seconds))


def _fitted_from_less(choice: SegmentChoice, plan: Candidate, limits: Limits) -> Candidate | None:
    """Starts from the best plan for devices with less memory.

    By as much less as the given plan's peaks are above the memory that lasts.
    """
    problem = choice.problem
    placement = problem.placement(plan.stages)
    peaks = peak_bytes(problem.graph, problem.cluster, placement, problem.assumptions)
    lasting = plan.cost.memory_bytes
    part = min(
        low / ((1 + RESERVE) * peak) for low, peak in zip(lasting, peaks, strict=True) if peak
    )
    devices = tuple(
        replace(d, memory_bytes=None if d.memory_bytes is None else part * d.memory_bytes)
        for d in problem.cluster.devices
    )
    try:
        less = compile_problem(
            problem.graph, replace(problem.cluster, devices=devices), problem.assumptions
        )
        again = replace(limits, began=time.monotonic(), progress=None)
        found = search(less, again, Baselines.of(less), briefly=True)
    except (InfeasibleError, NoPlanError):
        return None
    if found.interrupted:
        raise KeyboardInterrupt
    return _fitted(choice, found.incumbent, SEARCH_S)


def _fits_soon(problem: Problem) -> bool:
    """Whether a plan that fits at its peaks is found at once."""
    limits = Limits(began=time.monotonic(), time_limit_s=SOON_S, gap=NEAR)
    try:
        known = Baselines.of(problem)
        found = search(possible(problem), limits, known, briefly=True).incumbent
    except (InfeasibleError, NoPlanError):
        return False
    if not excesses(problem, found.stages):
        return True
    return _fitted(_without_segments(problem), found, SOON_S) is not None


def _does_not_fit(over: list[Excess], cure: str) -> NoPlanError:
    worst = max(over, key=lambda one: one.peak_bytes / max(one.limit_bytes, 1.0))
    return NoPlanError(
        "no plan was found, though one may exist, that fits at its peak: the stage on "
        f"{worst.device!r} needs "
        f"{size(worst.peak_bytes)} for moments (a tenth of it in reserve), its limit is "
        f"{size(worst.limit_bytes)}; {cure}"
    )
