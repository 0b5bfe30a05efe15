"""From a graph and a cluster to a plan with its certificate."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from skyfx.solver import backend, baselines, ilp
from skyfx.solver.cluster import Cluster
from skyfx.solver.cost import Cost
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.files import digest, encode
from skyfx.solver.graph import Graph
from skyfx.solver.infeasible import explain
from skyfx.solver.interval import interval_plan
from skyfx.solver.plan import (
    Alternatives,
    Assumptions,
    Plan,
    Reference,
    SolverInfo,
    Stage,
    Strategy,
    relative_gap,
)
from skyfx.solver.problem import Problem, UnitPlacement

__all__: list[str] = ["Progress", "Solution", "solve"]

PROVEN = 1e-6
"""A bound this close to the objective, relatively, is the solver's own tolerance: the plan is optimal."""

Progress = Callable[[float, float], None]
"""Called with the incumbent's objective value and the lower bound, both in seconds."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan, and whether the search was ended by Ctrl-C before it was done."""

    plan: Plan
    interrupted: bool


@dataclass(frozen=True, slots=True)
class _Candidate:
    stages: UnitPlacement
    cost: Cost

    @property
    def value(self) -> float:
        return self.cost.objective_value


@dataclass(frozen=True, slots=True)
class _Bound:
    """A proven lower bound in seconds, and the name of what proves it."""

    value: float
    binding: str


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
    progress: Progress | None = None,
) -> Solution:
    """Plan a graph on a cluster.

    Args:
        graph: the model with its measured times.
        cluster: devices and links.
        assumptions: mode, objective, schedule, micro-batches; by default those of `skyfx solve`.
        strategy: `optimal`, or the baseline `even` or `dynamic` alone.
        time_limit_s: seconds for the integer program; then the best plan so far comes with its true gap.
        gap: relative gap at which the search may end.
        seed: the solver's random seed.
        solver: any solver that `pulp.getSolver` knows.
        graph_sha256: digest of the file that the graph was read from; by default of its own encoding.
        cluster_sha256: likewise for the cluster.
        progress: told of each better plan.

    Returns:
        A plan that is never worse than the best single device or the even split, with a proven lower bound.

    Raises:
        InfeasibleError: no plan can exist.
        NoPlanError: none was found in time, or the asked-for baseline does not fit.
    """
    began = time.monotonic()
    graph.check()
    cluster.check()
    problem = Problem(graph, cluster, assumptions or Assumptions())
    problem.assumptions.check()
    if fault := explain(problem):
        raise InfeasibleError(fault)
    known = {
        "even": _candidate(problem, baselines.even(problem)),
        "dynamic": _candidate(problem, baselines.dynamic(problem)),
        "best_single_device": _candidate(problem, baselines.best_single_device(problem)),
    }
    bound, interrupted = _largest_unit(problem), False
    if strategy == "optimal":
        start = _warm_start(problem, [c for c in known.values() if c])
        limit_s = max(0.0, time_limit_s - (time.monotonic() - began))
        search = _Search(problem, limit_s, gap, seed, solver, progress)
        best, bound, interrupted = search.run(start, bound)
    else:
        best = known[strategy]
        if best is None:
            raise NoPlanError(
                f"the {strategy} split does not fit these devices; strategy 'optimal' finds a plan if one exists"
            )
    wall_s = time.monotonic() - began
    references = (
        Reference(
            name=graph.name,
            sha256=graph_sha256 or digest(encode(graph)),
            structure=graph.structure(),
        ),
        Reference(name="cluster", sha256=cluster_sha256 or digest(encode(cluster))),
    )
    alternatives = Alternatives(**{name: c and c.value for name, c in known.items()})
    plan = _plan(problem, best, bound, strategy, wall_s, solver, references, alternatives)
    return Solution(plan, interrupted)


def _candidate(problem: Problem, stages: UnitPlacement | None) -> _Candidate | None:
    if stages is None:
        return None
    cost = problem.cost(stages)
    return _Candidate(stages, cost) if problem.fits(cost, stages) else None


def _warm_start(problem: Problem, known: list[_Candidate]) -> _Candidate | None:
    """The best of the baselines and the interval DP."""
    bottleneck = min((c.cost.bottleneck_s for c in known), default=math.inf)
    found = _candidate(problem, interval_plan(problem, bottleneck))
    return min([*known, *([found] if found else [])], key=lambda c: c.value, default=None)


def _largest_unit(problem: Problem) -> _Bound:
    """Every unit runs on some device: none can be faster than the slowest unit on its fastest device."""
    fastest = problem.time_s.min(axis=0)
    if problem.assumptions.objective == "throughput":
        return _Bound(float(fastest.max()), "largest unit")
    rounds = (
        0 if problem.assumptions.objective == "latency" else problem.assumptions.microbatches - 1
    )
    return _Bound(float(fastest.sum() + rounds * fastest.max()), "every unit on its fastest device")


@dataclass(frozen=True, slots=True)
class _Search:
    """The integer program's search: its limits, and whom to tell."""

    problem: Problem
    time_limit_s: float
    gap: float
    seed: int
    solver: str
    progress: Progress | None

    def run(self, start: _Candidate | None, bound: _Bound) -> tuple[_Candidate, _Bound, bool]:
        """The best plan, the best bound, and whether Ctrl-C ended the search."""
        if start is not None and self._close_enough(start.value, bound.value):
            return start, bound, False
        scale = (start.cost.bottleneck_s if start else bound.value) or 1.0
        model = ilp.build(self.problem, scale)
        if start is not None and self.problem.assumptions.objective == "throughput":
            model.bottleneck.upBound = 1 + PROVEN
        answer = backend.minimise(
            model.lp,
            model.start(start.stages) if start else {},
            time_limit_s=self.time_limit_s,
            gap=self.gap,
            seed=self.seed,
            solver=self.solver,
            progress=self._scaled(scale),
        )
        found = _candidate(self.problem, answer.values and model.placement(answer.values))
        options = [c for c in (start, found) if c is not None]
        if not options and answer.infeasible:
            raise InfeasibleError(no_plan_at_all(self.problem))
        if not options:
            raise NoPlanError(
                f"no plan was found in {self.time_limit_s:.0f} s, though one may exist; raise the time limit"
            )
        best = min(options, key=lambda c: c.value)
        proven = answer.bound * scale
        if proven >= best.value * (1 - PROVEN):
            proven = best.value
        if proven > bound.value:
            bound = _Bound(proven, "integer program")
        return best, bound, answer.interrupted

    def _close_enough(self, value: float, bound: float) -> bool:
        return value <= bound * (1 + max(self.gap, PROVEN))

    def _scaled(self, scale: float) -> Progress | None:
        tell = self.progress
        return tell and (lambda value, bound: tell(value * scale, bound * scale))


def no_plan_at_all(problem: Problem) -> str:
    """The message where each part would fit but no plan does."""
    return (
        f"the integer program proves that no split of {problem.num_units} units over "
        f"{problem.num_devices} devices keeps every memory limit. "
        "Raise `memory_bytes` of a device, add one, or lower the number of micro-batches."
    )


def _plan(
    problem: Problem,
    best: _Candidate,
    bound: _Bound,
    strategy: Strategy,
    wall_s: float,
    solver: str,
    references: tuple[Reference, Reference],
    alternatives: Alternatives,
) -> Plan:
    cost, lower = best.cost, min(bound.value, best.value)
    if best.value <= lower * (1 + PROVEN):
        lower = best.value
    per_stage = zip(
        problem.placement(best.stages),
        cost.compute_s,
        cost.receive_s,
        cost.send_s,
        cost.time_s,
        cost.memory_bytes,
        strict=True,
    )
    return Plan(
        graph=references[0],
        cluster=references[1],
        assumptions=problem.assumptions,
        stages=tuple(
            Stage(
                device=device,
                nodes=tuple(ids),
                compute_s=compute,
                receive_s=receive,
                send_s=send,
                time_s=time_s,
                memory_bytes=memory,
            )
            for (device, ids), compute, receive, send, time_s, memory in per_stage
        ),
        bottleneck_s=cost.bottleneck_s,
        step_s=cost.step_s,
        objective_value=cost.objective_value,
        lower_bound=lower,
        gap=relative_gap(cost.objective_value, lower),
        solver=SolverInfo(
            name=solver,
            version=backend.version() if solver == "HiGHS" else "",
            status="optimal" if lower == best.value else "feasible",
            wall_s=wall_s,
            strategy=strategy,
            binding=bound.binding,
        ),
        alternatives=alternatives,
    )
