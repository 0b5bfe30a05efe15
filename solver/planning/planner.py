"""The front door of the planner: from a graph and a cluster to a plan with its certificate.

compile    graph, cluster, assumptions -> units, values and devices as arrays    search.py
search     the best plan by the memory that lasts, and a lower bound             search.py
repair     peaks that do not fit                                                 peak_repair.py
recompute  parts of stages, where memory is short                               recomputation.py
remove     stages that the objective does not need                               stage_removal.py
adapt      to a schedule with counts of its own                           schedule_adaptation.py
certify    the bound that holds under that schedule                       schedule_adaptation.py
build      the plan                                                              plan_builder.py
"""

import time
from dataclasses import dataclass, replace
from typing import get_args

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.field_checks import non_negative, one_of, whole_number
from skyfx.solver.core.files import digest, encode
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Assumptions, Plan, Reference, Strategy
from skyfx.solver.methods import mip_backend
from skyfx.solver.methods.limits import Limits, Progress
from skyfx.solver.methods.portfolio import SearchResult
from skyfx.solver.planning.peak_repair import knows_peaks, repair_peaks
from skyfx.solver.planning.plan_builder import Provenance, build
from skyfx.solver.planning.recomputation import (
    bounded_problem,
    may_recompute,
    recomputing_always,
    search_recomputing,
)
from skyfx.solver.planning.schedule_adaptation import (
    adapt_schedule,
    as_schedule_error,
    certify,
    search_assumptions,
)
from skyfx.solver.planning.search import Baselines, check_documents, possible, search
from skyfx.solver.planning.stage_removal import without_needless_stages
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.peak_excess import excesses


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan, and whether the search was ended by Ctrl-C before it was done."""

    plan: Plan
    interrupted: bool


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
    enforce_peaks: bool = True,
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
        enforce_peaks: whether the predicted peak of each stage, with a tenth in reserve, has to
            fit its device, where the graph gives the sizes that predict it. Without it only
            `memory_bytes` has to fit, as in plans of other planners.
        graph_sha256: digest of the file that the graph was read from; by default of its encoding.
        cluster_sha256: likewise for the cluster.
        cluster_name: what the plan calls the cluster, such as its file's name.
        progress: told of the best plan and the bound while the search runs.

    Returns:
        A plan with a proven lower bound, never worse than the best single device or the even split
        where these fit.

    Raises:
        InfeasibleError: no plan can exist.
        NoPlanError: none was found in time or within its peaks, or the asked-for baseline does not
            fit.
        KeyboardInterrupt: Ctrl-C came before the first plan.
    """
    began = time.monotonic()
    non_negative("time_limit_s", time_limit_s)
    non_negative("gap", gap)
    whole_number("seed", seed, least=0)
    one_of("strategy", strategy, get_args(Strategy))
    one_of("solver", solver, mip_backend.names())
    asked = Problem(graph, cluster, assumptions or Assumptions())
    limits = Limits(
        began=began, time_limit_s=time_limit_s, gap=gap, seed=seed, solver=solver, progress=progress
    )
    check_documents(graph, cluster, asked.assumptions)
    usual = Problem(graph, cluster, search_assumptions(asked.assumptions))
    problem = recomputing_always(usual)
    known = Baselines.of(problem)
    enforce_peaks = enforce_peaks and knows_peaks(problem)
    problem, found = _searched(asked, problem, limits, known, strategy, enforce_peaks=enforce_peaks)
    searched_s = time.monotonic() - began
    if strategy == "optimal":
        best = without_needless_stages(
            problem,
            found.incumbent,
            lambda stages: not (enforce_peaks and excesses(problem, stages)),
        )
        found = replace(found, incumbent=best)
    planned = replace(asked, graph=problem.graph)
    scheduled = adapt_schedule(planned, found.incumbent, strategy, enforce_peaks=enforce_peaks)
    placement = problem.placement(scheduled.candidate.stages)
    bound = certify(bounded_problem(asked, planned.graph), placement, found.bound, searched_s)
    provenance = Provenance(
        graph=Reference(
            name=graph.name,
            sha256=graph_sha256 or digest(encode(graph)),
            structure=graph.structure(),
        ),
        cluster=Reference(name=cluster_name, sha256=cluster_sha256 or digest(encode(cluster))),
        alternatives=known.alternatives(),
        strategy=strategy,
        solver=solver,
        wall_s=searched_s,
        remarks=found.remarks,
    )
    return Solution(build(planned, scheduled, bound, provenance), found.interrupted)


def _searched(
    asked: Problem,
    problem: Problem,
    limits: Limits,
    known: Baselines,
    strategy: Strategy,
    *,
    enforce_peaks: bool,
) -> tuple[Problem, SearchResult]:
    """The best plan under the schedule of the search, and the problem with what it recomputes."""
    recomputes = strategy == "optimal" and may_recompute(problem)

    def plain(limits: Limits) -> SearchResult:
        with as_schedule_error(asked):
            return search(possible(problem), limits, known, strategy, briefly=recomputes)

    if recomputes:
        return search_recomputing(problem, plain, limits, enforce_peaks=enforce_peaks)
    found = plain(limits)
    return problem, repair_peaks(problem, found, limits, strategy) if enforce_peaks else found
