"""Which stages do not fit their devices at their peaks."""

from dataclasses import dataclass

from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem

RESERVE = 0.1
"""Share of a predicted peak that a device must have free beside it: predictions were too low."""


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
