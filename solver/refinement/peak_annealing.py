"""Repairs excesses of peak memory by annealing around a plan that fits in steady state.

How much comes and goes in a stage depends on where exactly it begins and ends, and on how many
messages wait there, so no sum over its nodes tells it. Here the stages stand one after another,

    order of the units   a b c | d e f g | h i j
    devices                p   |    q    |   r

and cuts move by some units, two devices change places, or an idle one takes a part of a stage. The
score is the objective and the excesses of the peaks; the best plan without excess is the result.
"""

import math
from dataclasses import dataclass

from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.methods.heuristics.annealing import Assessed, Cooling
from skyfx.solver.methods.method import Candidate
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.cut_moves import Segments, anneal_cuts, segments_of, stages_of

RESERVE = 0.1
"""Share of a predicted peak that a device must have free beside it: predictions were too low."""

HOT, COLD = 0.1, 1e-3
"""Temperatures, in parts of the objective."""

MOVES, MOVES_EACH = 3000, 100
"""At most, and per unit."""

EXCESS_WEIGHT = 5.0
"""The weight of an excess, in parts of the limit, against the objective."""


@dataclass(frozen=True, slots=True)
class Excess:
    """A stage that does not fit at its peak: its bytes with the reserve, and its limit."""

    device: str
    peak_bytes: float
    limit_bytes: float


def excesses(problem: Problem, stages: UnitPlacement) -> list[Excess]:
    """The stages whose peaks are above the limits of their devices."""
    placement = problem.placement(stages)
    predicted = peak_bytes(problem.graph, problem.cluster, placement, problem.assumptions)
    return [
        Excess(name, (1 + RESERVE) * peak, float(problem.memory_limit[d]))
        for (d, _), (name, _), peak in zip(stages, placement, predicted, strict=True)
        if (1 + RESERVE) * peak > problem.memory_limit[d]
    ]


def fitting(problem: Problem, stages: UnitPlacement, deadline: float) -> Candidate | None:
    """The best plan found near these stages that fits at its peaks; None where none was.

    Args:
        problem: with the true limits of the devices.
        stages: a plan that fits in steady state.
        deadline: by `time.monotonic`, when to end.
    """
    order, segments = segments_of(stages)
    unit = problem.cost(stages).objective_value or 1.0

    def assess(segments: Segments) -> Assessed[Candidate]:
        """By the objective in parts of the first one and, with a higher weight, by the excesses."""
        stages = stages_of(order, *segments)
        found = Candidate.of(problem, stages, "fitting")
        if found is None:
            return Assessed(math.inf)
        too_large = excesses(problem, stages)
        over = sum(one.peak_bytes / max(one.limit_bytes, 1.0) - 1 for one in too_large)
        score = found.value / unit + EXCESS_WEIGHT * over
        return Assessed(score, found.value if over == 0 else math.inf, found)

    cooling = Cooling(min(MOVES, MOVES_EACH * len(order)), HOT, COLD, deadline)
    return anneal_cuts(problem, segments, assess, cooling)
