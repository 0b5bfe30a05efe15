"""Plans that fit at their peaks, near one that fits by what lasts alone.

How much comes and goes in a stage depends on where exactly it begins and ends, and on how many
messages wait there, so no sum over its nodes tells it. Here the stages stand one after another,

    order of the units   a b c | d e f g | h i j
    devices                p   |    q    |   r

and cuts move by some units, two devices change places, or one that has nothing to do takes a part
of a stage. It is annealing (`annealing.py`) on the objective and what the peaks are above their
limits; the best plan that fits is kept.
"""

import math
from dataclasses import dataclass

import numpy as np

from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.methods.heuristics.annealing import Cooling, anneal
from skyfx.solver.methods.method import Candidate
from skyfx.solver.problem.problem import Problem, UnitPlacement
from skyfx.solver.refinement.cut_moves import IntervalTables, line_of, near, stages_of

__all__: list[str] = ["RESERVE", "Excess", "excesses", "fitting"]

RESERVE = 0.1
"""Of a predicted peak, what a device must have free beside it: what predictions were too low by."""

HOT, COLD = 0.1, 1e-3
"""Temperatures, in parts of the objective."""

MOVES, MOVES_EACH = 3000, 100
"""At the most, and for each unit."""

DEAR = 5.0
"""What a peak above its limit counts, in parts of the limit, beside the objective."""


@dataclass(frozen=True, slots=True)
class Excess:
    """A stage that does not fit at its peak: bytes it takes with the reserve, and its limit."""

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
        stages: a plan that fits by what lasts.
        deadline: by `time.monotonic`, when to take what has been found.
    """
    search = _Search(problem, stages)
    random = np.random.default_rng(0)
    anneal(
        search.line,
        lambda line: near(line, problem.num_devices, random),
        search.scored,
        Cooling(min(MOVES, MOVES_EACH * len(search.order)), HOT, COLD, deadline),
        random,
    )
    return search.best


class _Search:
    """The best line of stages that fits."""

    def __init__(self, problem: Problem, stages: UnitPlacement) -> None:
        self.problem = problem
        self.order, self.line = line_of(stages)
        self.best: Candidate | None = None
        self.unit = problem.cost(stages).objective_value or 1.0

    def scored(self, line: IntervalTables) -> float:
        """The objective in parts of the first one, and, dear, what peaks are above their limits."""
        stages = stages_of(self.order, *line)
        found = Candidate.of(self.problem, stages, "fitting")
        if found is None:
            return math.inf
        over = sum(
            one.peak_bytes / max(one.limit_bytes, 1.0) - 1 for one in excesses(self.problem, stages)
        )
        if over == 0 and (self.best is None or found.value < self.best.value):
            self.best = found
        return found.value / self.unit + DEAR * over
