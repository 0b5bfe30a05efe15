"""What every method of search is given, and what it hands back: one shape for all of them.

A method is a generator. It yields an `Answer` whenever it knows more, so the time limit and Ctrl-C
cost nothing that it has found, and the search can end it as soon as the gap is closed.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from skyfx.solver.bounds import Bound
from skyfx.solver.compiling import compiled_s
from skyfx.solver.cost import Cost
from skyfx.solver.interrupt import Interrupt
from skyfx.solver.problem import Problem, UnitPlacement

__all__: list[str] = [
    "PROVEN",
    "UNDER",
    "Answer",
    "Candidate",
    "Limits",
    "Method",
    "Progress",
    "Task",
    "TimeUpError",
]

UNDER = 1 - 1e-9
"""Sums of many floats differ in their last digits: a bound stays this far below."""

PROVEN = 1e-6
"""A bound this close to the objective, relatively, is the solver's tolerance: it is optimal."""

Progress = Callable[[float, float], None]
"""Called with the best plan's objective value, or infinity, and the lower bound, in seconds."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan that fits, and what it costs."""

    stages: UnitPlacement
    cost: Cost
    method: str = ""

    @property
    def value(self) -> float:
        """The objective's value."""
        return self.cost.objective_value

    @classmethod
    def of(
        cls, problem: Problem, stages: UnitPlacement | None, method: str = ""
    ) -> "Candidate | None":
        """The candidate of these stages; None where there are none or they do not fit."""
        if stages is None:
            return None
        cost = problem.cost(stages)
        return cls(stages, cost, method) if problem.fits(cost, stages) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to end: `began` is by `time.monotonic`, `gap` is relative.

    The time for which kernels are compiled does not count.
    """

    began: float = 0.0
    time_limit_s: float = math.inf
    gap: float = 0.0
    seed: int = 0
    solver: str = "HiGHS"
    progress: Progress | None = None
    interrupt: Interrupt = field(default_factory=Interrupt)
    compiled_before_s: float = field(default_factory=compiled_s)

    @property
    def compiled_s(self) -> float:
        """Seconds for which kernels have been compiled since."""
        return compiled_s() - self.compiled_before_s

    @property
    def deadline(self) -> float:
        """By `time.monotonic`, when to end."""
        return self.began + self.time_limit_s + self.compiled_s

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, not below zero; none are left once Ctrl-C has come."""
        return 0.0 if self.interrupt.came else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise `TimeUpError` where no time is left."""
        if self.left_s <= 0:
            raise TimeUpError


class TimeUpError(Exception):
    """The time is up, in the middle of a method; what it has yielded counts."""


@dataclass(frozen=True, slots=True)
class Task:
    """A problem, the best plan and bound that are known, and the limits."""

    problem: Problem
    best: Candidate | None
    bound: Bound
    limits: Limits

    @property
    def bottleneck_s(self) -> float:
        """The bottleneck of the best plan; infinite without one."""
        return math.inf if self.best is None else self.best.cost.bottleneck_s

    @property
    def done(self) -> bool:
        """Whether the best plan is within the asked-for gap of the bound."""
        if self.best is None:
            return False
        return self.best.value <= self.bound.value * (1 + max(self.limits.gap, PROVEN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a method adds to what is known. Each field may say nothing."""

    stages: UnitPlacement | None = None
    bound: Bound | None = None
    """On the objective."""
    infeasible: str = ""
    """Why no plan can exist; proven."""
    interrupted: bool = False
    """Ctrl-C came while the method was running, and the method has ended in order."""
    says: str = ""
    """What the method did, or why it has nothing to add; it stands in the plan."""


Method = Callable[[Task], Iterator[Answer]]
