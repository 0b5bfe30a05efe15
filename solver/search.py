"""The search for the best plan: baselines, interval DP, then the integer program; and its bounds.

Each step starts from the best plan so far and hands on one that is at least as good, so Ctrl-C and
the time limit cost nothing that was found.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from skyfx.solver import backend, ilp
from skyfx.solver.bounds import Bound, simple_bound
from skyfx.solver.cost import Cost
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.interval import interval_plan
from skyfx.solver.problem import Problem, UnitPlacement

__all__: list[str] = ["PROVEN", "Candidate", "Found", "Progress", "Search"]

PROVEN = 1e-6
"""A bound this close to the objective, relatively, is the solver's tolerance: it is optimal."""

ROWS_PER_S = 40_000
"""Constraints of the integer program that PuLP takes in a second, about."""

Progress = Callable[[float, float], None]
"""Called with the best plan's objective value, or infinity, and the lower bound, in seconds."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan that fits, and what it costs."""

    stages: UnitPlacement
    cost: Cost

    @property
    def value(self) -> float:
        """The objective's value."""
        return self.cost.objective_value

    @classmethod
    def of(cls, problem: Problem, stages: UnitPlacement | None) -> "Candidate | None":
        """The candidate of these stages; None where there are none or they do not fit."""
        if stages is None:
            return None
        cost = problem.cost(stages)
        return cls(stages, cost) if problem.fits(cost, stages) else None


@dataclass(frozen=True, slots=True)
class Found:
    """The best plan, the best bound, and whether Ctrl-C ended the search before it was done."""

    best: Candidate
    bound: Bound
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class Search:
    """The limits of a search, and whom to tell; `began` is by `time.monotonic`."""

    problem: Problem
    began: float
    time_limit_s: float
    gap: float
    seed: int
    solver: str
    progress: Progress | None

    def run(self, known: list[Candidate]) -> Found:
        """Find the best plan.

        Args:
            known: plans that the answer may not be worse than.

        Raises:
            InfeasibleError: it is proven that there is no plan.
            NoPlanError: none was found in time.
            KeyboardInterrupt: none was found before Ctrl-C.
        """
        bound = simple_bound(self.problem)
        best = _best(known)
        try:
            bottleneck = min((c.cost.bottleneck_s for c in known), default=math.inf)
            stages = interval_plan(self.problem, bottleneck, self._deadline)
            best = _best([*known, Candidate.of(self.problem, stages)])
            if best is not None and self._done(best, bound):
                return Found(best, bound)
            return self._integer_program(best, bound)
        except KeyboardInterrupt:
            if best is None:
                raise
            return Found(best, bound, interrupted=True)

    @property
    def _deadline(self) -> float:
        return self.began + self.time_limit_s

    def _done(self, best: Candidate, bound: Bound) -> bool:
        close_enough = best.value <= bound.value * (1 + max(self.gap, PROVEN))
        # Writing the program down takes time of its own, and cannot be stopped half-way.
        writing_s = self.problem.num_units * self.problem.num_devices**2 / ROWS_PER_S
        return close_enough or time.monotonic() + writing_s >= self._deadline

    def _integer_program(self, start: Candidate | None, bound: Bound) -> Found:
        scale = (start.cost.bottleneck_s if start else bound.value) or 1.0
        model = ilp.build(self.problem, scale)
        if start is not None and self.problem.assumptions.objective == "throughput":
            model.bottleneck.upBound = 1 + PROVEN
        answer = backend.minimise(
            model.lp,
            model.start(start.stages) if start else {},
            time_limit_s=max(0.0, self._deadline - time.monotonic()),
            gap=self.gap,
            seed=self.seed,
            solver=self.solver,
            progress=self._scaled(scale),
        )
        stages = None if answer.values is None else model.placement(answer.values)
        best = _best([start, Candidate.of(self.problem, stages)])
        if best is None:
            raise self._without_a_plan(answer)
        proven = answer.bound * scale
        if proven >= best.value * (1 - PROVEN):
            proven = best.value
        if proven > bound.value:
            bound = Bound(proven, "integer program")
        return Found(best, bound, answer.interrupted)

    def _without_a_plan(self, answer: backend.Answer) -> BaseException:
        if answer.interrupted:
            return KeyboardInterrupt()
        if not answer.infeasible:
            return NoPlanError(
                f"no plan was found in {self.time_limit_s:g} s, though one may exist; "
                "raise the time limit"
            )
        return InfeasibleError(
            f"the integer program proves that no split of {self.problem.num_units} units over "
            f"{self.problem.num_devices} devices keeps their order, runs each on a type that can "
            "run it and fits every memory. Raise `memory_bytes` of a device, add one, or lower the "
            "number of micro-batches."
        )

    def _scaled(self, scale: float) -> Progress | None:
        tell = self.progress
        return tell and (lambda value, bound: tell(value * scale, bound * scale))


def _best(candidates: list[Candidate] | list[Candidate | None]) -> Candidate | None:
    found = [candidate for candidate in candidates if candidate is not None]
    return min(found, key=lambda candidate: candidate.value, default=None)
