"""The laws that every plan keeps, on random small graphs and clusters, against trying everything."""

import pytest
from hypothesis import given, settings

from skyfx.solver import Assumptions, Cluster, Graph, solve, validate
from skyfx.solver.errors import InfeasibleError
from skyfx.solver.plan import Plan
from tests.instances import all_plans, assumptions, clusters, graphs
from tests.referee import referee_faults

CLOSE = 1e-6


def best_value(g: Graph, c: Cluster, a: Assumptions) -> float | None:
    return min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)


def solved(g: Graph, c: Cluster, a: Assumptions) -> Plan | None:
    try:
        return solve(g, c, a).plan
    except InfeasibleError:
        return None


@settings(max_examples=150, deadline=None)
@given(graphs(), clusters(), assumptions())
def test_the_plan_is_the_best_of_all_plans(g: Graph, c: Cluster, a: Assumptions) -> None:
    plan, best = solved(g, c, a), best_value(g, c, a)
    assert (plan is None) == (best is None)
    if plan is not None:
        assert plan.objective_value == pytest.approx(best, rel=CLOSE, abs=1e-9)
        assert plan.lower_bound <= best * (1 + CLOSE) + 1e-9
        assert plan.solver.status == "optimal"
        assert validate(g, c, plan) == ()
        assert referee_faults(g, c, plan) == []
