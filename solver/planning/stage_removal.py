"""The fourth step of planning: no stage more than the objective needs.

Among plans of equal objective the search returns any. Here stages go that the plan does without:

    p: -    q: -    r: 5    s: 115        two stages without units pass the inputs on
    r: 5    s: 115                        dropped, where the objective does not get worse
    s: 120                                merged, where moreover the latency does not get worse

An empty stage stays where it makes the objective better, as one on a device with fast links
between two that have only a slow one.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skyfx.solver.core.cluster import Wiring
from skyfx.solver.core.graph import Node
from skyfx.solver.costs.cost_model import crossing_s, crossings
from skyfx.solver.methods.method import Candidate
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import CLEARLY

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
    """The plan with neighbours merged; None where that makes it worse."""
    found, merging, k = None, _Merging.of(problem, best), 0
    while k < len(best.stages) - 1:
        merged = merging.merged(k, fits)
        if merged is None:
            k += 1
        else:
            found = best = merged
            merging = _Merging.of(problem, best)
    return found


@dataclass(frozen=True, slots=True)
class _Merging:
    """A plan whose neighbours may merge.

    Attributes:
        problem: the problem.
        best: the plan.
        between: what crosses each boundary in `relay`.
        wires: between devices.
    """

    problem: Problem
    best: Candidate
    between: Sequence[Sequence[Node]]
    wires: Wiring

    @classmethod
    def of(cls, problem: Problem, best: Candidate) -> "_Merging":
        placement = problem.placement(best.stages)
        stage_of = {v: k for k, (_, ids) in enumerate(placement) for v in ids}
        between = crossings(problem.graph, stage_of, len(placement))
        return cls(problem, best, between, problem.cluster.wiring())

    def merged(self, k: int, fits: Fits) -> Candidate | None:
        """The plan with stages k and k + 1 merged on a device of theirs, where it is no worse."""
        best = self.best
        (one, first), (two, second) = best.stages[k : k + 2]
        units = sorted([*first, *second])
        for device in (one, two):
            if not self._may_do(k, device, units):
                continue
            fewer = [*best.stages[:k], (device, units), *best.stages[k + 2 :]]
            found = Candidate.of(self.problem, fewer, best.method)
            if found is None or found.value > best.value * ROUNDING:
                continue
            if found.cost.latency_s <= best.cost.latency_s * ROUNDING and fits(fewer):
                return found
        return None

    def _may_do(self, k: int, device: int, units: list[int]) -> bool:
        """Whether the merged stage may be no worse; to evaluate the plan takes far longer."""
        problem, best, cost = self.problem, self.best, self.best.cost
        needed = problem.need_bytes(len(best.stages) - 1 - k)[units].sum()
        if needed + max(problem.peak_bytes[units], default=0.0) > problem.memory_limit[device]:
            return False
        asked = problem.assumptions
        receive_s, send_s = cost.receive_s[k : k + 2], cost.send_s[k : k + 2]
        if asked.communication == "relay":
            gone_s, moves = receive_s[0] + sum(send_s), self._moves(k, device)
        else:
            gone_s, moves = sum(receive_s) + sum(send_s), []
        parts = (float(problem.time_s[device, units].sum()), *moves)
        stage_s = max(parts) if asked.overlap == "full" else sum(parts)
        latency_s = cost.latency_s - sum(cost.compute_s[k : k + 2]) - gone_s + sum(parts)
        times = asked.microbatches if asked.objective == "step" else 1
        within = stage_s * times <= best.value * CLEARLY
        return within and latency_s <= cost.latency_s * CLEARLY

    def _moves(self, k: int, device: int) -> list[float]:
        """Seconds from the stage before and to the stage after, for a merged stage k, k + 1."""
        devices = self.problem.cluster.devices
        pairs = []
        if k > 0:
            pairs.append((k - 1, self.best.stages[k - 1][0], device))
        if k + 2 < len(self.best.stages):
            pairs.append((k + 1, device, self.best.stages[k + 2][0]))
        return [
            crossing_s(
                self.between[at],
                self.wires,
                devices[here].name,
                devices[there].name,
                self.problem.assumptions,
            )
            for at, here, there in pairs
        ]
