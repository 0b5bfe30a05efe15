"""The exact methods in host communication, against trying every plan."""

from dataclasses import replace

import pytest
from hypothesis import given

from skyfx.solver import Assumptions, Cluster, Graph
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.exact.host_pair_dp import host_pair_dp
from skyfx.solver.methods.exact.host_window_dp import host_window_dp
from skyfx.solver.methods.features import ProblemFeatures
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate, Method, SearchState
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import all_plans, assumptions, clusters, graphs
from tests.support.tiers import cases

CLOSE = 1e-6


def proves_the_best(method: Method, g: Graph, c: Cluster, a: Assumptions) -> None:
    best = min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)
    problem = Problem(g, c, a)
    found, bound = None, simple_bound(problem)
    for answer in method(SearchState(ProblemFeatures(problem), None, bound, Limits())):
        if answer.infeasible:
            assert best is None
            return
        candidate = Candidate.of(problem, answer.stages)
        if candidate is not None:
            found = candidate.value if found is None else min(found, candidate.value)
        if answer.bound is not None and answer.bound.value > bound.value:
            bound = answer.bound
    assert found == pytest.approx(best, rel=CLOSE, abs=1e-9)
    assert bound.value == pytest.approx(best, rel=CLOSE, abs=1e-9)


@cases(400)
@given(graphs(), clusters(), assumptions())
def test_pairs_of_ideals_find_and_prove_the_best_plan(g: Graph, c: Cluster, a: Assumptions) -> None:
    proves_the_best(host_pair_dp, g, c, replace(a, communication="host"))


@cases(400)
@given(graphs(), clusters(), assumptions())
def test_windows_find_and_prove_the_best_bottleneck(g: Graph, c: Cluster, a: Assumptions) -> None:
    proves_the_best(host_window_dp, g, c, replace(a, communication="host", objective="throughput"))
