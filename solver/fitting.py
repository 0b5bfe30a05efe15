"""Plans that fit at their peaks, near one that fits by what lasts alone.

How much comes and goes in a stage depends on where exactly it begins and ends, and on how many
messages wait there, so no sum over its nodes tells it. Here the stages stand one after another,

    order of the units   a b c | d e f g | h i j
    devices                p   |    q    |   r

and cuts move by some units, two devices change places, or one that has nothing to do takes a part
of a stage. It is simulated annealing (Kirkpatrick et al. 1983) on the objective and what the peaks
are above their limits; the best plan that fits is kept.
"""

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np

from skyfx.solver.cuts import Cuts, all_have_units, moved, some_units, stages_of
from skyfx.solver.method import Candidate
from skyfx.solver.peak import peak_bytes
from skyfx.solver.problem import Problem, UnitPlacement

__all__: list[str] = ["RESERVE", "Excess", "excesses", "fitting"]

RESERVE = 0.1
"""Of a predicted peak, what a device must have free beside it: what predictions were too low by."""

HOT, COLD = 0.1, 1e-3
"""Temperatures, in parts of the objective."""

MOVES, MOVES_EACH = 3000, 100
"""At the most, and for each unit."""

DEAR = 5.0
"""What a peak above its limit counts, in parts of the limit, beside the objective."""

OTHER_DEVICES = 0.2
"""How often a device changes."""

Line = tuple[tuple[int, ...], Cuts]
"""The device of each stage, `(K,)`, and where in the order each stage ends, `(K,)`."""


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
    moves = min(MOVES, MOVES_EACH * len(search.order))
    for move in range(moves):
        if time.monotonic() >= deadline:
            break
        search.move(HOT * (COLD / HOT) ** (move / moves))
    return search.best


class _Search:
    """A line of stages that moves, and the best one that fits."""

    def __init__(self, problem: Problem, stages: UnitPlacement) -> None:
        self.problem = problem
        self.order = [unit for _, part in stages for unit in sorted(part)]
        ends = tuple(itertools.accumulate(len(part) for _, part in stages))
        self.line: Line = (tuple(d for d, _ in stages), ends)
        self.best: Candidate | None = None
        self.unit = problem.cost(stages).objective_value or 1.0
        self.random = np.random.default_rng(0)
        self.score = self._scored(self.line)

    def move(self, heat: float) -> None:
        """Try a move; one for the worse stands at times, if it is little in terms of `heat`."""
        line = self._moved()
        if line is None:
            return
        score = self._scored(line)
        if score < self.score + heat * self.random.exponential():
            self.line, self.score = line, score

    def _scored(self, line: Line) -> float:
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

    def _moved(self) -> Line | None:
        """A line near this one; None where a stage would have nothing to do."""
        changed = self.random.random() < OTHER_DEVICES
        devices, ends = self._other_devices() if changed else self._other_cuts()
        if not all_have_units(ends):
            return None
        return tuple(devices), tuple(ends)

    def _other_cuts(self) -> tuple[list[int], list[int]]:
        return list(self.line[0]), moved(self.line[1], self.random)

    def _other_devices(self) -> tuple[list[int], list[int]]:
        """Two stages swap theirs, or an idle device takes a stage or one end of it."""
        devices, ends = list(self.line[0]), list(self.line[1])
        idle = [d for d in range(self.problem.num_devices) if d not in devices]
        j, k = (int(x) for x in self.random.integers(len(devices), size=2))
        kind = int(self.random.integers(4)) if idle else 0
        if kind == 0:
            devices[j], devices[k] = devices[k], devices[j]
            return devices, ends
        d = int(self.random.choice(idle))
        if kind == 1:
            devices[k] = d
        elif kind == 2:  # its last units
            ends.insert(k, ends[k] - self._some_units())
            devices.insert(k + 1, d)
        else:
            ends.insert(k, (0, *ends)[k] + self._some_units())
            devices.insert(k, d)
        return devices, ends

    def _some_units(self) -> int:
        return some_units(len(self.order), self.random)
