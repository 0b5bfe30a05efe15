"""The fourth step of planning: no stage more than the objective needs.

Among plans of equal objective the search returns any. Here stages go that the plan does without:

    p: -    q: -    r: 5    s: 115        two stages without units pass the inputs on
    r: 5    s: 115                        dropped, where the objective does not get worse
    s: 120                                merged, where moreover the latency does not get worse

An empty stage stays where it makes the objective better, as one on a device with fast links
between two that have only a slow one.
"""

import itertools
from collections.abc import Callable

from skyfx.solver.methods.method import Candidate
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem

ROUNDING = 1 + 1e-12
"""By how much an equal figure may differ."""


Fits = Callable[[UnitPlacement], bool]


def without_needless_stages(problem: Problem, best: Candidate, fits: Fits) -> Candidate:
    """The plan with as few stages as its objective allows.

    Args:
        problem: the problem under the schedule of the search.
        best: the plan.
        fits: whether stages keep the limits that the cost model does not know.
    """
    for smaller in (_with_fewer_empty, _with_fewer_busy):
        while (found := smaller(problem, best, fits)) is not None:
            best = found
    return best


def _with_fewer_empty(problem: Problem, best: Candidate, fits: Fits) -> Candidate | None:
    """The plan without some of its empty stages; None where it needs each of them."""
    stages = list(best.stages)
    empty = [k for k, (_, units) in enumerate(stages) if not len(units)]
    runs = [  # of neighbours
        (j, k + 1)
        for j, k in itertools.combinations_with_replacement(empty, 2)
        if all(x in empty for x in range(j, k))
    ]
    for begin, end in sorted(runs, key=lambda run: run[0] - run[1]):  # the longest first
        fewer = stages[:begin] + stages[end:]
        found = Candidate.of(problem, fewer, best.method)
        if found is not None and found.value <= best.value * ROUNDING and fits(fewer):
            return found
    return None


def _with_fewer_busy(problem: Problem, best: Candidate, fits: Fits) -> Candidate | None:
    """The plan with two neighbours merged; None where that makes it worse."""
    stages = list(best.stages)
    asked = problem.assumptions
    times = asked.microbatches if asked.objective == "step" else 1
    longest_s = best.value * ROUNDING / times  # a device that computes longer makes it worse
    for k, ((one, first), (two, second)) in enumerate(itertools.pairwise(stages)):
        units = sorted([*first, *second])
        for device in (one, two):
            if problem.time_s[device, units].sum() > longest_s:
                continue
            fewer = [*stages[:k], (device, units), *stages[k + 2 :]]
            found = Candidate.of(problem, fewer, best.method)
            if found is None or found.value > best.value * ROUNDING:
                continue
            if found.cost.latency_s <= best.cost.latency_s * ROUNDING and fits(fewer):
                return found
    return None
