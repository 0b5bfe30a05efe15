"""Plans whose generated schedule has a shorter step, where memory leaves little choice.

Where a plan is changed until it fits its devices under 1f1b, some of its stages could have more to
do if they kept fewer micro-batches live, which that schedule does not allow. Here cuts and devices
change (`cuts.near`) for as long as the step becomes shorter that is simulated with as many live
micro-batches as there is room for.
"""

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np

from skyfx.solver.core.schedule import in_flight_counts, orders
from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.simulator import run_schedule
from skyfx.solver.methods.heuristics.annealing import Cooling, anneal
from skyfx.solver.problem.problem import Problem, UnitPlacement
from skyfx.solver.refinement.cut_moves import IntervalTables, line_of, near, stages_of
from skyfx.solver.refinement.in_flight import Live
from skyfx.solver.refinement.memory_headroom import MemoryHeadroom

__all__: list[str] = ["shortened"]

HOT, COLD = 0.03, 1e-4
MOVES, SEARCH_S = 3000, 6.0

MULTIPLES = (1, 2)
"""Of 1f1b's counts, as many as there is room for are tried."""


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
    search = _Search(problem, stages, usual_peaks)
    cooling = Cooling(MOVES, HOT, COLD, time.monotonic() + SEARCH_S)
    random = np.random.default_rng(0)
    anneal(
        search.line,
        lambda line: near(line, problem.num_devices, random),
        search.scored,
        cooling,
        random,
    )
    return search.best


class _Search:
    """The best stages that fit."""

    def __init__(
        self, problem: Problem, stages: UnitPlacement, usual_peaks: dict[str, float]
    ) -> None:
        self._problem, self._usual_peaks = problem, usual_peaks
        self._order, self.line = line_of(stages)
        self._best_s = math.inf
        self._unit_s = problem.cost(stages).step_s or 1.0
        counts = in_flight_counts("1f1b", len(stages), problem.assumptions.microbatches)
        self.best: tuple[UnitPlacement, Live] = (stages, counts)

    def scored(self, line: IntervalTables) -> float:
        """A step in parts of the plan's; infinite where it does not fit."""
        problem = self._problem
        stages = stages_of(self._order, *line)
        if not all(np.isfinite(problem.time_s[d, list(part)]).all() for d, part in stages):
            return math.inf
        placement = problem.placement(stages)
        pace = ActionTimes.of(problem.graph, problem.cluster, placement, problem.assumptions)
        room = MemoryHeadroom(problem, placement, self._usual_peaks)
        step_s = math.inf
        for live in self._wanted(room.most()):
            timeline = run_schedule(
                pace, orders(live, problem.assumptions.microbatches, pace.devices)
            )
            if timeline.step_s < step_s and room.fits(live, timeline):
                step_s = timeline.step_s
                if step_s < self._best_s:
                    self._best_s, self.best = step_s, (stages, live)
        return step_s / self._unit_s

    def _wanted(self, most: Sequence[int]) -> set[Live]:
        """Counts to try where there is room for `most` on each stage, none above the one before."""
        m = self._problem.assumptions.microbatches
        search_assumptions = in_flight_counts("1f1b", len(most), m)
        found = set()
        for times in MULTIPLES:
            counts = (
                min(m, times * n, room) for n, room in zip(search_assumptions, most, strict=True)
            )
            found.add(tuple(itertools.accumulate(counts, min)))
        return {live for live in found if live[-1] >= 1}
