"""A bound derived a second time: never above the optimum, and a wrong bound is refuted."""

from dataclasses import replace

import pytest
from hypothesis import given

from skyfx.solver import Assumptions, Cluster, Graph, solve
from skyfx.solver.analysis.recheck import recheck, spread_freely
from skyfx.solver.errors import InfeasibleError
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import (
    assumptions,
    clusters,
    cpus,
    graph,
    graphs,
    hard_problem,
    node,
)
from tests.support.tiers import cases


@cases(150)
@given(graphs(), clusters(), assumptions())
def test_a_right_bound_is_confirmed_and_one_above_a_plan_is_refuted(
    g: Graph, c: Cluster, a: Assumptions
) -> None:
    try:
        plan = solve(g, c, a, enforce_peaks=False).plan
    except InfeasibleError:
        return
    problem = Problem(g, c, a)
    assert recheck(problem, plan.lower_bound).verdict == "confirmed"
    if plan.objective_value > 0:
        assert recheck(problem, plan.objective_value * 1.5 + 1).verdict == "refuted"


@pytest.mark.slow
@cases(60)
@given(graphs(), clusters(), assumptions())
def test_spreading_freely_bounds_every_plan(g: Graph, c: Cluster, a: Assumptions) -> None:
    try:
        plan = solve(g, c, a, enforce_peaks=False).plan
    except InfeasibleError:
        return
    value = spread_freely(Problem(g, c, a), 10.0)
    assert value <= plan.bottleneck_s * (1 + 1e-6) + 1e-9


def test_a_bound_out_of_reach_stays_open_and_says_how_far_it_came() -> None:
    g, c = hard_problem()
    problem = Problem(g, c, Assumptions())
    bound = 1.05 * simple_bound(problem).value
    found = recheck(problem, bound, time_limit_s=0.5)
    assert found.verdict == "open"
    assert 0 < found.value < bound


def test_pairs_of_ideals_confirm_what_the_simple_bounds_do_not_reach() -> None:
    # three units of 2 s on two devices: 4 s, where the work alone says 3 s
    g, c = graph([node(f"n{i}", forward_s={"cpu": 2.0}) for i in range(3)]), cpus(1.0, 1.0)
    for overlap in ("none", "full"):
        found = recheck(Problem(g, c, replace(Assumptions(), overlap=overlap)), 4.0)
        assert (found.verdict, found.value) == ("confirmed", pytest.approx(4.0, rel=1e-4))
        assert "ideals" in found.by
