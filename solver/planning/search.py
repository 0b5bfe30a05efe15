"""The first two steps of planning: compile the problem, then search for its best plan."""

import time
from dataclasses import dataclass, replace

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.pins import Pin
from skyfx.solver.core.plan import Alternatives, Assumptions, Strategy
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.heuristics import baselines
from skyfx.solver.methods.limits import Limits, interrupt
from skyfx.solver.methods.method import Candidate
from skyfx.solver.methods.portfolio import Portfolio, SearchResult
from skyfx.solver.problem.infeasibility import advised, explain
from skyfx.solver.problem.problem import Problem

AT_ONCE_S = 0.5
"""Seconds for each change that may make an impossible problem possible."""


@dataclass(frozen=True, slots=True)
class Baselines:
    """The plans that one would make by hand; None where one does not fit."""

    even: Candidate | None
    dynamic: Candidate | None
    best_single_device: Candidate | None

    @classmethod
    def of(cls, problem: Problem) -> "Baselines":
        """The baselines of a problem."""
        return cls(
            even=Candidate.of(problem, baselines.even(problem), "even"),
            dynamic=Candidate.of(problem, baselines.dynamic(problem), "dynamic"),
            best_single_device=Candidate.of(
                problem, baselines.best_single_device(problem), "best single device"
            ),
        )

    def best(self) -> Candidate | None:
        """The one with the smallest objective."""
        found = [c for c in (self.even, self.dynamic, self.best_single_device) if c is not None]
        return min(found, key=lambda candidate: candidate.value, default=None)

    def alternatives(self) -> Alternatives:
        """Their objectives, for the plan."""

        def value(candidate: Candidate | None) -> float | None:
            return None if candidate is None else candidate.value

        return Alternatives(
            even=value(self.even),
            dynamic=value(self.dynamic),
            best_single_device=value(self.best_single_device),
        )


def compile_problem(graph: Graph, cluster: Cluster, assumptions: Assumptions) -> Problem:
    """The problem, if its parts are right and nothing simple rules out every plan.

    Raises:
        ValueError: a field, a pin or a reference is wrong.
        InfeasibleError: no plan can exist.
    """
    graph.check()
    cluster.check()
    assumptions.check()
    for pin in map(Pin.of, assumptions.pins):
        pin.check(graph.nodes, [device.name for device in cluster.devices])
    problem = Problem(graph, cluster, assumptions)
    if fault := explain(problem):
        raise InfeasibleError(advised(problem, fault, lambda changed: explain(changed) is None))
    return problem


def search(
    problem: Problem, limits: Limits, known: Baselines, strategy: Strategy = "optimal"
) -> SearchResult:
    """The best plan by the cost model's `memory_bytes`, or one of the baselines.

    Raises:
        InfeasibleError: no plan can exist.
        NoPlanError: none was found in time, or the asked-for baseline does not fit.
        KeyboardInterrupt: Ctrl-C came before the first plan.
    """
    if strategy != "optimal":
        return _baseline(problem, strategy, known)
    with interrupt() as ctrl_c:
        try:
            return Portfolio(problem, replace(limits, interrupt=ctrl_c), known.best()).run()
        except InfeasibleError as error:
            raise InfeasibleError(advised(problem, str(error), _has_plan_soon)) from None


def _has_plan_soon(problem: Problem) -> bool:
    """Whether any plan is found at once."""
    if explain(problem) is not None:
        return False
    limits = Limits(began=time.monotonic(), time_limit_s=AT_ONCE_S, gap=1e9)
    try:
        Portfolio(problem, limits, Baselines.of(problem).best()).run()
    except (InfeasibleError, NoPlanError):
        return False
    return True


def _baseline(problem: Problem, strategy: Strategy, known: Baselines) -> SearchResult:
    candidate = known.even if strategy == "even" else known.dynamic
    if candidate is None:
        raise NoPlanError(
            f"the {strategy} split does not fit these devices; "
            "strategy 'optimal' finds a plan if one exists"
        )
    return SearchResult(candidate, simple_bound(problem))
