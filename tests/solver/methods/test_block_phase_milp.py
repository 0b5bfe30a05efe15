"""Chains of repeated blocks: the exact method against trying every plan, and a known optimum."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planner.instances import sky_computing
from skyfx.solver import Assumptions, Graph, solve
from skyfx.solver.methods.bounds.simple_bounds import simple_bound
from skyfx.solver.methods.exact.block_phase_milp import block_phase_milp
from skyfx.solver.methods.features import ProblemFeatures
from skyfx.solver.methods.limits import Limits
from skyfx.solver.methods.method import Candidate, SearchState
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import all_plans, cpus, graph, node
from tests.support.tiers import cases

CLOSE = 1e-6


def chain(times: list[float]) -> Graph:
    return graph(
        [
            node(f"n{i}", (f"n{i - 1}",) if i else (), forward_s={"cpu": time})
            for i, time in enumerate(times)
        ]
    )


@st.composite
def repeated(draw: st.DrawFn) -> Graph:
    """Two to four blocks of one to three units between odd ends."""
    seconds = st.integers(1, 9).map(float)
    block = draw(st.lists(seconds, min_size=1, max_size=3))
    begin, end = (draw(st.lists(seconds, max_size=2)) for _ in range(2))
    return chain([*begin, *block * draw(st.integers(2, 4)), *end])


@cases(300)
@given(repeated(), st.lists(st.integers(1, 5).map(float), min_size=1, max_size=3))
def test_it_finds_and_proves_the_best_plan(g: Graph, slowdowns: list[float]) -> None:
    problem = Problem(g, cpus(*slowdowns), Assumptions())
    best = min(cost.objective_value for _, cost in all_plans(g, problem.cluster, Assumptions()))
    bound = simple_bound(problem)
    found = float("inf")
    for answer in block_phase_milp(SearchState(ProblemFeatures(problem), None, bound, Limits())):
        assert not answer.infeasible
        candidate = Candidate.of(problem, answer.stages)
        found = min(found, candidate.value if candidate else found)
        if answer.bound is not None and answer.bound.value > bound.value:
            bound = answer.bound
    assert bound.value <= best * (1 + CLOSE)
    if found < float("inf"):
        assert found >= best * (1 - CLOSE)


@pytest.mark.parametrize(
    ("slowdowns", "ratio"),
    [
        (np.random.default_rng(32).random(64)[1:] + 1, 1.0562),
        (np.random.default_rng(35).integers(1, 7, 64)[1:] + 1, 1.0717),
    ],
    ids=["real slowdowns", "whole slowdowns"],
)
def test_483_thirds_of_layers_on_63_unlike_workers_are_proven(
    slowdowns: np.ndarray, ratio: float
) -> None:
    g, c = sky_computing(slowdowns, thirds=True)
    ideal = sum(n.forward_s["cpu"] for n in g.nodes) / sum(1 / slowdowns)
    plan = solve(g, c).plan
    assert plan.solver.status == "optimal"
    assert plan.solver.binding == "phases of repeated blocks"
    assert plan.objective_value / ideal == pytest.approx(ratio, abs=5e-4)
