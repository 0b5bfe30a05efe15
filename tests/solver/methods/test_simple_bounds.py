"""Bounds that need no search are never above the best plan."""

import pytest
from hypothesis import assume, given

from skyfx.solver import Assumptions, Cluster, Graph
from skyfx.solver.methods.bounds.simple_bounds import largest_unit, simple_bound, total_work
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import (
    all_plans,
    assumptions,
    clusters,
    cpus,
    graph,
    graphs,
    node,
)


@given(graphs(), clusters(), assumptions())
def test_no_plan_beats_a_simple_bound(g: Graph, c: Cluster, a: Assumptions) -> None:
    best = min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)
    assume(best is not None)
    assert simple_bound(Problem(g, c, a)).value <= best * (1 + 1e-9)


def test_equal_units_are_bounded_by_work_over_speed() -> None:
    units = [node("n0"), *(node(f"n{i}", (f"n{i - 1}",)) for i in range(1, 8))]
    bound = total_work(Problem(graph(units), cpus(1.0, 3.0), Assumptions()))
    assert bound.value == pytest.approx(8 / (1 + 1 / 3))  # 6 units here, 2 there


def test_one_large_unit_bounds_the_bottleneck() -> None:
    units = [node("n0"), node("n1", ("n0",), forward_s={"cpu": 5.0})]
    bound = largest_unit(Problem(graph(units), cpus(1.0, 1.0), Assumptions()))
    assert bound.value == 5.0
