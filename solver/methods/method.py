"""The input and the output of every method of search.

A method is a generator. It yields a `MethodUpdate` whenever it knows more, so the time limit and
Ctrl-C lose nothing that it has found, and the search can end it as soon as the gap is closed.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from skyfx.solver.costs.cost_model import Cost
from skyfx.solver.methods.features import ProblemFeatures
from skyfx.solver.methods.limits import Limits
from skyfx.solver.problem.instance import UnitPlacement
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import OPTIMALITY_TOLERANCE


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


@dataclass(frozen=True, slots=True)
class Bound:
    """A proven lower bound in seconds, and the name of its proof."""

    value: float
    binding: str


@dataclass(frozen=True, slots=True)
class SearchState:
    """A problem with its properties, the best plan and bound that are known, and the limits."""

    features: ProblemFeatures
    incumbent: Candidate | None
    bound: Bound
    limits: Limits

    @property
    def problem(self) -> Problem:
        """The problem."""
        return self.features.problem

    @property
    def bottleneck_s(self) -> float:
        """The bottleneck of the best plan; infinite without one."""
        return math.inf if self.incumbent is None else self.incumbent.cost.bottleneck_s

    @property
    def done(self) -> bool:
        """Whether the best plan is within the asked-for gap of the bound."""
        if self.incumbent is None:
            return False
        return self.incumbent.value <= self.bound.value * (
            1 + max(self.limits.gap, OPTIMALITY_TOLERANCE)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodUpdate:
    """New knowledge of a method. Each field may be empty."""

    stages: UnitPlacement | None = None
    bound: Bound | None = None
    """On the objective."""
    infeasible: str = ""
    """Why no plan can exist; proven."""
    interrupted: bool = False
    """Ctrl-C came while the method was running, and the method has ended in order."""
    remark: str = ""
    """The work of the method, or why it has nothing to add; it stands in the plan under `says`."""


Method = Callable[[SearchState], Iterator[MethodUpdate]]
