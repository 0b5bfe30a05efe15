"""Plans with two stages on each device, which the micro-batches visit in turn.

    one stage a device    p p p p p p | q q q | r r r r          order of the units
    interleaved           p p p | q | r r | p p p | q q | r r

The last device begins sooner and the first one ends sooner, so that less of the step is spent on
filling and draining the pipeline; values cross twice as many boundaries. From the best plan with
one stage a device, each device's share is cut in two along the order, then the cuts move for as
long as the simulated step becomes shorter (`annealing.py`).
"""

import math
import time
from collections.abc import Sequence

import numpy as np

from skyfx.solver.core.schedule import in_flight_counts, orders
from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.simulator import run_schedule
from skyfx.solver.methods.heuristics.annealing import Assessed, Cooling, anneal
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.cut_moves import Cuts, all_have_units, moved, stages_of
from skyfx.solver.refinement.in_flight import Live
from skyfx.solver.refinement.memory_headroom import MemoryHeadroom

TURNS = 2
"""Stages of each device."""

HOT, COLD = 0.02, 1e-4
"""Temperatures, in parts of the step."""

MOVES, SEARCH_S = 400, 5.0


def interleaved(
    problem: Problem, stages: UnitPlacement, usual_peaks: dict[str, float]
) -> tuple[UnitPlacement, Live] | None:
    """Cut the stages of a plan in two and give the parts to its devices in turn.

    Args:
        problem: what is planned; a device may not have to run every unit.
        stages: one for each device.
        usual_peaks: bytes that each device takes with these, at its peak.

    Returns:
        The stages and how many micro-batches may be live on each; None where there is one device
        alone, or no plan of this kind was found.
    """
    if len(stages) == 1 or problem.num_units < TURNS * len(stages):
        return None
    order = [unit for _, part in stages for unit in sorted(part)]
    devices = tuple(d for d, _ in stages) * TURNS
    unit_s, m = problem.cost(stages).step_s or 1.0, problem.assumptions.microbatches
    random = np.random.default_rng(0)

    def neighbour(ends: Cuts) -> Cuts | None:
        other = tuple(moved(ends, random))
        return other if all_have_units(other) else None

    def assess(ends: Cuts) -> Assessed[tuple[UnitPlacement, Live]]:
        """By the step in parts of the plan's, with as many micro-batches in flight as fit."""
        stages = stages_of(order, devices, ends)
        if not all(np.isfinite(problem.time_s[d, list(part)]).all() for d, part in stages):
            return Assessed(math.inf)
        placement = problem.placement(stages)
        times = ActionTimes.of(problem.graph, problem.cluster, placement, problem.assumptions)
        headroom = MemoryHeadroom(problem, placement, usual_peaks)
        for live in (in_flight_counts("1f1b", len(stages), m), (1,) * len(stages)):
            timeline = run_schedule(times, orders(live, m, times.devices))
            if headroom.fits(live, timeline):
                return Assessed(timeline.step_s / unit_s, timeline.step_s, (stages, live))
        return Assessed(math.inf)

    first = _first_cuts(problem, stages, order, devices)
    cooling = Cooling(MOVES, HOT, COLD, time.monotonic() + SEARCH_S)
    return anneal(first, neighbour, assess, cooling, random)


def _first_cuts(
    problem: Problem, stages: UnitPlacement, order: list[int], devices: Sequence[int]
) -> Cuts:
    """Each device has as much to do in each turn as in half of its stage."""
    shares = [float(problem.time_s[d, list(part)].sum()) / TURNS for d, part in stages]
    ends: list[int] = []
    begin, last = 0, len(order)
    for k, d in enumerate(devices):
        times = problem.time_s[d, order[begin:]]
        full = int(np.searchsorted(np.cumsum(times), shares[k % len(shares)], side="right"))
        left = len(devices) - k - 1
        begin = min(max(begin + 1, begin + full), last - left)
        ends.append(begin if left else last)
    return tuple(ends)
