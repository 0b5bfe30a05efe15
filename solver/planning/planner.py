"""From a graph and a cluster to a plan with its certificate."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.field_checks import non_negative, one_of
from skyfx.solver.core.files import digest, encode
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.pins import Pin
from skyfx.solver.core.plan import (
    Alternatives,
    Assumptions,
    Plan,
    Reference,
    SolverInfo,
    Stage,
    Strategy,
    relative_gap,
)
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.methods import mip_backend
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.heuristics import baselines
from skyfx.solver.methods.limits import Limits, Progress, interrupt
from skyfx.solver.methods.method import Candidate
from skyfx.solver.methods.portfolio import Portfolio, SearchResult
from skyfx.solver.planning.schedule_adaptation import (
    adapt_schedule,
    as_schedule_error,
    search_assumptions,
    stages_with,
)
from skyfx.solver.problem.infeasibility import advised, explain
from skyfx.solver.problem.problem import Problem
from skyfx.solver.problem.tolerances import OPTIMALITY_TOLERANCE

__all__: list[str] = ["Progress", "Solution", "checked", "replanned", "solve"]


AT_ONCE_S = 0.5
"""Seconds for each change that may make an impossible problem possible."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan, and whether the search was ended by Ctrl-C before it was done."""

    plan: Plan
    interrupted: bool


@dataclass(frozen=True, slots=True)
class _Known:
    """The baselines; None where one does not fit."""

    even: Candidate | None
    dynamic: Candidate | None
    best_single_device: Candidate | None

    @classmethod
    def of(cls, problem: Problem) -> "_Known":
        return cls(
            even=Candidate.of(problem, baselines.even(problem), "even"),
            dynamic=Candidate.of(problem, baselines.dynamic(problem), "dynamic"),
            best_single_device=Candidate.of(
                problem, baselines.best_single_device(problem), "best single device"
            ),
        )

    def best(self) -> Candidate | None:
        found = [c for c in (self.even, self.dynamic, self.best_single_device) if c is not None]
        return min(found, key=lambda candidate: candidate.value, default=None)

    def alternatives(self) -> Alternatives:
        def value(candidate: Candidate | None) -> float | None:
            return None if candidate is None else candidate.value

        return Alternatives(
            even=value(self.even),
            dynamic=value(self.dynamic),
            best_single_device=value(self.best_single_device),
        )


def solve(
    graph: Graph,
    cluster: Cluster,
    assumptions: Assumptions | None = None,
    *,
    strategy: Strategy = "optimal",
    time_limit_s: float = 60.0,
    gap: float = 0.0,
    seed: int = 0,
    solver: str = "HiGHS",
    graph_sha256: str | None = None,
    cluster_sha256: str | None = None,
    cluster_name: str = "cluster",
    progress: Progress | None = None,
) -> Solution:
    """Plan a graph on a cluster.

    Args:
        graph: the model with its measured times.
        cluster: devices and links.
        assumptions: mode, objective, schedule, micro-batches; by default those of `skyfx solve`.
        strategy: `optimal`, or the baseline `even` or `dynamic` alone.
        time_limit_s: seconds for the search; then the best plan so far comes with its true gap.
        gap: relative gap at which the search may end.
        seed: the solver's random seed.
        solver: any solver that `pulp.getSolver` knows.
        graph_sha256: digest of the file that the graph was read from; by default of its encoding.
        cluster_sha256: likewise for the cluster.
        cluster_name: what the plan calls the cluster, such as its file's name.
        progress: told of the best plan and the bound while the search runs.

    Returns:
        A plan with a proven lower bound, never worse than the best single device or the even split.

    Raises:
        InfeasibleError: no plan can exist.
        NoPlanError: none was found in time, or the asked-for baseline does not fit.
        KeyboardInterrupt: Ctrl-C came before the first plan.
    """
    began = time.monotonic()
    non_negative("time_limit_s", time_limit_s)
    non_negative("gap", gap)
    one_of("strategy", strategy, get_args(Strategy))
    one_of("solver", solver, mip_backend.names())
    asked = Problem(graph, cluster, assumptions or Assumptions())
    limits = Limits(
        began=began,
        time_limit_s=time_limit_s,
        gap=gap,
        seed=seed,
        solver=solver,
        progress=progress,
    )
    with as_schedule_error(asked):
        problem = checked(graph, cluster, search_assumptions(asked.assumptions))
        known = _Known.of(problem)
        found = _found(problem, strategy, limits, known)
    plan = _plan(
        problem,
        found,
        graph=_graph_reference(graph, graph_sha256),
        cluster=Reference(name=cluster_name, sha256=cluster_sha256 or digest(encode(cluster))),
        solver=_solver_info(found, strategy, solver, time.monotonic() - began),
        alternatives=known.alternatives(),
    )
    return Solution(adapt_schedule(plan, asked), found.interrupted)


def _found(problem: Problem, strategy: Strategy, limits: Limits, known: _Known) -> SearchResult:
    if strategy != "optimal":
        return _baseline(problem, strategy, known)
    with interrupt() as ctrl_c:
        return _search(problem, replace(limits, interrupt=ctrl_c), known)


def _search(problem: Problem, limits: Limits, known: _Known) -> SearchResult:
    try:
        return Portfolio(problem, limits, known.best()).run()
    except InfeasibleError as error:
        raise InfeasibleError(advised(problem, str(error), _plan_soon)) from None


def _plan_soon(problem: Problem) -> bool:
    """Whether any plan is found at once."""
    if explain(problem) is not None:
        return False
    limits = Limits(began=time.monotonic(), time_limit_s=AT_ONCE_S, gap=1e9)
    try:
        Portfolio(problem, limits, _Known.of(problem).best()).run()
    except (InfeasibleError, NoPlanError):
        return False
    return True


def checked(graph: Graph, cluster: Cluster, assumptions: Assumptions) -> Problem:
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


def _baseline(problem: Problem, strategy: Strategy, known: _Known) -> SearchResult:
    candidate = known.even if strategy == "even" else known.dynamic
    if candidate is None:
        raise NoPlanError(
            f"the {strategy} split does not fit these devices; "
            "strategy 'optimal' finds a plan if one exists"
        )
    return SearchResult(candidate, simple_bound(problem))


def _graph_reference(graph: Graph, sha256: str | None) -> Reference:
    return Reference(
        name=graph.name,
        sha256=sha256 or digest(encode(graph)),
        structure=graph.structure(),
    )


def _lower_bound(found: SearchResult) -> float:
    value, bound = found.incumbent.value, found.bound.value
    return value if value <= bound * (1 + OPTIMALITY_TOLERANCE) else bound


def _solver_info(found: SearchResult, strategy: Strategy, solver: str, wall_s: float) -> SolverInfo:
    return SolverInfo(
        name=solver,
        version=mip_backend.version() if solver == "HiGHS" else "",
        status="optimal" if _lower_bound(found) == found.incumbent.value else "feasible",
        wall_s=wall_s,
        strategy=strategy,
        binding=found.bound.binding,
        method=found.incumbent.method,
        says=found.remarks,
    )


def _plan(
    problem: Problem,
    found: SearchResult,
    *,
    graph: Reference,
    cluster: Reference,
    solver: SolverInfo,
    alternatives: Alternatives,
) -> Plan:
    cost, lower_bound = found.incumbent.cost, _lower_bound(found)
    return Plan(
        graph=graph,
        cluster=cluster,
        assumptions=problem.assumptions,
        stages=_stages(problem, found.incumbent),
        bottleneck_s=cost.bottleneck_s,
        step_s=cost.step_s,
        objective_value=cost.objective_value,
        lower_bound=lower_bound,
        gap=relative_gap(cost.objective_value, lower_bound),
        solver=solver,
        alternatives=alternatives,
    )


def replanned(plan: Plan, problem: Problem, candidate: Candidate) -> Plan:
    """The plan with other stages, found after the search; bound and alternatives stay."""
    cost = candidate.cost
    gap = relative_gap(cost.objective_value, plan.lower_bound)
    return replace(
        plan,
        stages=_stages(problem, candidate),
        bottleneck_s=cost.bottleneck_s,
        step_s=cost.step_s,
        objective_value=cost.objective_value,
        gap=gap,
        solver=replace(plan.solver, status="feasible", method=candidate.method),
    )


def _stages(problem: Problem, best: Candidate) -> tuple[Stage, ...]:
    cost, placement = best.cost, problem.placement(best.stages)
    peaks: Sequence[float] = [0.0] * len(placement)
    if problem.assumptions.communication == "relay":
        peaks = peak_bytes(problem.graph, problem.cluster, placement, problem.assumptions)
    return stages_with(problem.cluster, placement, cost, peaks, [0] * len(placement))
