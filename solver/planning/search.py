"""The first two steps of planning: compile the problem, then search for its best plan.

For other solvers the compiled problem is written as an integer program.
"""

import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.files import replacing
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.pins import Pin
from skyfx.solver.core.plan import Alternatives, Assumptions, Strategy
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.heuristics import baselines
from skyfx.solver.methods.limits import Limits, interrupt
from skyfx.solver.methods.method import Candidate
from skyfx.solver.methods.milp import formulation
from skyfx.solver.methods.portfolio import Portfolio, SearchResult
from skyfx.solver.problem.infeasibility import advised, explain
from skyfx.solver.problem.problem import Problem

AT_ONCE_S = 0.5
"""Seconds for each change that may make an impossible problem possible."""

MAX_ROWS = 3_000_000
"""Constraints of the largest integer program that is written."""


class Baselines(NamedTuple):
    """The plans that one would make by hand; None where one does not fit."""

    even: Candidate | None
    dynamic: Candidate | None
    best_single_device: Candidate | None

    @classmethod
    def of(cls, problem: Problem) -> "Baselines":
        """The baselines of a problem."""
        made = (baselines.even, baselines.dynamic, baselines.best_single_device)
        names = ("even", "dynamic", "best single device")
        return cls(*map(Candidate.of, repeat(problem), (make(problem) for make in made), names))

    def alternatives(self) -> Alternatives:
        """Their objectives, for the plan."""
        return Alternatives(**{name: one and one.value for name, one in self._asdict().items()})


def cheapest(candidates: Iterable[Candidate | None]) -> Candidate | None:
    """The one with the smallest objective; None where there is none."""
    found = [candidate for candidate in candidates if candidate is not None]
    return min(found, key=lambda candidate: candidate.value, default=None)


def compile_problem(graph: Graph, cluster: Cluster, assumptions: Assumptions) -> Problem:
    """The problem, if its parts are right and nothing simple rules out every plan.

    Raises:
        ValueError: a field, a pin or a reference is wrong.
        InfeasibleError: no plan can exist.
    """
    check_documents(graph, cluster, assumptions)
    return possible(Problem(graph, cluster, assumptions))


def check_documents(graph: Graph, cluster: Cluster, assumptions: Assumptions) -> None:
    """Refuse what is wrong in a field, a pin or a reference, with a `ValueError`."""
    graph.check()
    cluster.check()
    assumptions.check()
    for pin in map(Pin.of, assumptions.pins):
        pin.check(graph.nodes, [device.name for device in cluster.devices])


def possible(problem: Problem) -> Problem:
    """The problem, if nothing simple rules out every plan; else raises `InfeasibleError`."""
    if fault := explain(problem):
        raise InfeasibleError(advised(problem, fault, lambda changed: explain(changed) is None))
    return problem


def export(
    graph: Graph, cluster: Cluster, assumptions: Assumptions, path: Path, *, force: bool = False
) -> None:
    """Write the integer program in the LP format; `milp/formulation.py` explains its names.

    Raises:
        FileExistsError: the file exists and `force` is false.
        ValueError: the program is too large to be of use.
    """
    problem = compile_problem(graph, cluster, assumptions)
    rows = problem.num_units * problem.num_devices**2
    if rows > MAX_ROWS:
        raise ValueError(
            f"{path}: the integer program of {problem.num_units} units x {problem.num_devices} "
            f"devices has some {rows} constraints, at most {MAX_ROWS} are written; "
            "leave out --write-lp"
        )
    with replacing(path, force=force) as temporary:
        formulation.build(problem, simple_bound(problem).value or 1.0).lp.writeLP(str(temporary))


def search(
    problem: Problem,
    limits: Limits,
    known: Baselines,
    strategy: Strategy = "optimal",
    *,
    briefly: bool = False,
) -> SearchResult:
    """The best plan by the cost model's `memory_bytes`, or one of the baselines.

    Args:
        problem: what is planned.
        limits: those of the search.
        known: its baselines.
        strategy: the baseline that is asked for, or `optimal`.
        briefly: whether an error comes without advice, which takes longer than the search.

    Raises:
        InfeasibleError: no plan can exist.
        NoPlanError: none was found in time, or the asked-for baseline does not fit.
        KeyboardInterrupt: Ctrl-C came before the first plan.
    """
    if strategy != "optimal":
        if (candidate := known.even if strategy == "even" else known.dynamic) is None:
            raise NoPlanError(
                f"the {strategy} split does not fit these devices; "
                "strategy 'optimal' finds a plan if one exists"
            )
        return SearchResult(candidate, simple_bound(problem))
    with interrupt() as ctrl_c:
        try:
            return Portfolio(problem, replace(limits, interrupt=ctrl_c), cheapest(known)).run()
        except InfeasibleError as error:
            if briefly:
                raise
            raise InfeasibleError(advised(problem, str(error), has_plan_soon)) from None


def has_plan_soon(problem: Problem) -> bool:
    """Whether any plan is found at once."""
    if explain(problem) is not None:
        return False
    limits = Limits(began=time.monotonic(), time_limit_s=AT_ONCE_S, gap=1e9)
    try:
        Portfolio(problem, limits, cheapest(Baselines.of(problem))).run()
    except (InfeasibleError, NoPlanError):
        return False
    return True
