"""The exact method over all ideals in relay, against trying every plan."""

from dataclasses import replace

import pytest
from hypothesis import given

from skyfx.solver import Assumptions, Cluster, Graph
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.exact.level_dp import level_dp
from skyfx.solver.methods.features import ProblemFeatures
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate, SearchState
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import all_plans, assumptions, clusters, graphs
from tests.support.tiers import cases

CLOSE = 1e-6


def run(g: Graph, c: Cluster, a: Assumptions) -> tuple[float, float, float] | None:
    """From the worst plan: the best there is, the best that is found, and the best bound."""
    problem = Problem(g, c, a)
    names = [device.name for device in c.devices]
    plans = sorted(all_plans(g, c, a), key=lambda plan: plan[1].objective_value)
    if not plans:
        return None
    stages = [
        (names.index(name), sorted({problem.unit_of[v] for v in part}))
        for name, part in plans[-1][0]
    ]
    worst = Candidate.of(problem, stages)
    assert worst is not None
    known, found = simple_bound(problem), worst.value
    bound = known.value
    for answer in level_dp(SearchState(ProblemFeatures(problem), worst, known, Limits())):
        better = Candidate.of(problem, answer.stages)
        found = found if better is None else min(found, better.value)
        bound = bound if answer.bound is None else max(bound, answer.bound.value)
    return plans[0][1].objective_value, found, bound


@cases(300)
@given(graphs(), clusters(), assumptions())
def test_no_plan_beats_the_bound(g: Graph, c: Cluster, a: Assumptions) -> None:
    result = run(g, c, replace(a, communication="relay", objective="throughput"))
    if result is not None:
        best, _, bound = result
        assert bound <= best * (1 + CLOSE)


@cases(300)
@given(graphs(), clusters(), assumptions())
def test_without_memory_limits_it_finds_and_proves_the_best(
    g: Graph, c: Cluster, a: Assumptions
) -> None:
    c = replace(c, devices=tuple(replace(d, memory_bytes=None) for d in c.devices))
    result = run(g, c, replace(a, communication="relay", objective="throughput"))
    if result is not None:
        best, found, bound = result
        assert found == pytest.approx(best, rel=CLOSE, abs=1e-9)
        assert bound == pytest.approx(best, rel=CLOSE, abs=1e-9)
