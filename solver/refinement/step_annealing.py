"""Plans whose generated schedule has a shorter step, where memory leaves little choice.

A plan that was changed until it fits its devices under 1f1b may have stages that could do more if
they kept fewer micro-batches in flight, which that schedule does not allow. Here cuts and devices
change (`cut_moves`) for as long as the simulated step becomes shorter, with as many micro-batches
in flight as there is memory for.
"""

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np

from skyfx.solver.core.schedule import in_flight_counts, orders
from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.simulator import run_schedule
from skyfx.solver.methods.heuristics.annealing import Assessed, Cooling
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.cut_moves import Segments, anneal_cuts, segments_of, stages_of
from skyfx.solver.refinement.in_flight import Live
from skyfx.solver.refinement.memory_headroom import MemoryHeadroom

HOT, COLD = 0.03, 1e-4
MOVES, SEARCH_S = 3000, 6.0

MULTIPLES = (1, 2)
"""Of 1f1b's counts, to be tried where there is memory for them."""


def shortened(
    problem: Problem, stages: UnitPlacement, usual_peaks: dict[str, float]
) -> tuple[UnitPlacement, Live]:
    """Change the stages of a plan so that the step becomes shorter.

    Args:
        problem: what is planned, with the schedule `generated`.
        stages: a plan that fits under 1f1b.
        usual_peaks: bytes that each device takes with these, at its peak.

    Returns:
        The stages and how many micro-batches may be live on each.
    """
    order, segments = segments_of(stages)
    unit_s = problem.cost(stages).step_s or 1.0
    m = problem.assumptions.microbatches

    def assess(segments: Segments) -> Assessed[tuple[UnitPlacement, Live]]:
        """By the step in parts of the first plan's."""
        stages = stages_of(order, *segments)
        if not all(np.isfinite(problem.time_s[d, list(part)]).all() for d, part in stages):
            return Assessed(math.inf)
        placement = problem.placement(stages)
        times = ActionTimes.of(problem.graph, problem.cluster, placement, problem.assumptions)
        headroom = MemoryHeadroom(problem, placement, usual_peaks)
        best: Assessed[tuple[UnitPlacement, Live]] = Assessed(math.inf)
        for live in _counts_to_try(m, headroom.max_in_flight()):
            timeline = run_schedule(times, orders(live, m, times.devices))
            if timeline.step_s < best.value and headroom.fits(live, timeline):
                best = Assessed(timeline.step_s / unit_s, timeline.step_s, (stages, live))
        return best

    cooling = Cooling(MOVES, HOT, COLD, time.monotonic() + SEARCH_S)
    found = anneal_cuts(problem, segments, assess, cooling)
    return found or (stages, in_flight_counts("1f1b", len(stages), m))


def _counts_to_try(m: int, at_most: Sequence[int]) -> set[Live]:
    """Multiples of 1f1b's counts within the headroom of each stage, none above the one before."""
    usual = in_flight_counts("1f1b", len(at_most), m)
    found = set()
    for times in MULTIPLES:
        counts = (min(m, times * n, limit) for n, limit in zip(usual, at_most, strict=True))
        found.add(tuple(itertools.accumulate(counts, min)))
    return {live for live in found if live[-1] >= 1}
