"""The exact method over ideals, against trying every plan."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.exact.label_dp import LabelTables, label_dp
from skyfx.solver.methods.exact.label_lattice import LabelLattice
from skyfx.solver.methods.features import ProblemFeatures
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.relaxed_units import relax_until
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate, SearchState
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import all_plans, assumptions, clusters, graphs
from tests.support.tiers import cases

CLOSE = 1e-6


def run(g: Graph, c: Cluster, a: Assumptions) -> tuple[float | None, float]:
    """The best value and the best bound of the method alone."""
    problem = Problem(g, c, a)
    known = simple_bound(problem)
    best, bound = None, known.value
    for answer in label_dp(SearchState(ProblemFeatures(problem), None, known, Limits())):
        if answer.infeasible:
            return None, float("inf")
        found = Candidate.of(problem, answer.stages)
        if found is not None:
            best = found.value if best is None else min(best, found.value)
        if answer.bound is not None:
            bound = max(bound, answer.bound.value)
    return best, bound


@cases(300)
@given(graphs(), clusters(), assumptions())
def test_no_plan_beats_the_bound(g: Graph, c: Cluster, a: Assumptions) -> None:
    a = replace(a, communication="relay")
    best = min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)
    if best is not None:
        assert run(g, c, a)[1] <= best * (1 + CLOSE)


@cases(300)
@given(graphs(), clusters(), assumptions())
def test_without_memory_limits_it_finds_and_proves_the_best(
    g: Graph, c: Cluster, a: Assumptions
) -> None:
    a = replace(a, communication="relay")
    c = replace(c, devices=tuple(replace(d, memory_bytes=None) for d in c.devices))
    best = min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)
    found, bound = run(g, c, a)
    if best is None:
        assert found is None
    elif a.objective != "step":
        assert found == pytest.approx(best, rel=CLOSE, abs=1e-9)
        assert bound == pytest.approx(best, rel=CLOSE, abs=1e-9)


@cases(300)
@given(graphs(), clusters(), assumptions(), st.integers(2, 6))
def test_relaxed_units_only_lower_the_bound(
    g: Graph, c: Cluster, a: Assumptions, at_most: int
) -> None:
    a = replace(a, communication="relay")
    costs = [cost for _, cost in all_plans(g, c, a)]
    problem = Problem(g, c, a)
    found = relax_until(problem, at_most)
    if found is None or not costs:
        return
    lattice = LabelLattice(problem, found[0], States(problem), tuple(found[1]))
    best = min(cost.bottleneck_s for cost in costs)
    assert LabelTables(lattice).possible(best * (1 + CLOSE))
    shortest = lattice.shortest()
    assert shortest is not None
    assert shortest[0] <= min(cost.latency_s for cost in costs) * (1 + CLOSE) + 1e-9
