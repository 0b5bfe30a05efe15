"""Methods for chains and for many devices: bounds hold, plans are valid."""

from dataclasses import replace
from itertools import permutations
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planner.instances import layered, unlike_chain
from skyfx.solver import Assumptions, Cluster, Graph, solve, validate
from skyfx.solver.methods.bounds.pricing import assign_roles
from skyfx.solver.methods.method import Candidate
from skyfx.solver.problem.problem import Problem
from tests.support.independent_validator import referee_faults
from tests.support.method_runs import updates
from tests.support.planning_instances import all_plans, assumptions, clusters, graphs
from tests.support.tiers import cases


@st.composite
def chains(draw: st.DrawFn) -> Graph:
    """A random graph in which each node also reads the one before it, so that it is a chain."""
    g = draw(graphs())
    nodes = [replace(n, colocate=None, op="op") for n in g.nodes]
    chained = [
        replace(n, inputs=tuple(dict.fromkeys([*n.inputs, nodes[i - 1].id]))) if i else n
        for i, n in enumerate(nodes)
    ]
    return replace(g, nodes=tuple(chained))


@cases(300)
@given(chains(), clusters(), assumptions())
def test_no_plan_of_a_chain_beats_the_prices(g: Graph, c: Cluster, a: Assumptions) -> None:
    a = replace(a, communication="relay", objective="throughput")
    best = min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)
    if best is None:
        return
    problem = Problem(g, c, a)
    for answer in updates("interval dual bound", problem):
        if answer.bound is not None:
            assert answer.bound.value <= best * (1 + 1e-6)


@cases(200)
@given(st.integers(1, 4), st.integers(1, 5), st.randoms(use_true_random=False))
def test_what_different_devices_gain_is_that_of_the_best_choice(
    rows: int, columns: int, random: Random
) -> None:
    gains = np.array(
        [[random.choice([0.0, random.random()]) for _ in range(columns)] for _ in range(rows)]
    )
    best = max(
        (
            sum(gains[p, d] for p, d in enumerate(chosen))
            for chosen in permutations(range(columns), rows)
        ),
        default=gains.max(axis=1).sum(),
    )
    gain, more = assign_roles(gains)
    assert gain == pytest.approx(best)
    if rows <= columns:  # a fair price: no role is worth more to a device than it adds
        assert (more >= -1e-12).all()
        extra = (gains - more).max(axis=1)
        assert more.sum() + extra.sum() == pytest.approx(best)


@cases(15)
@given(graphs(), clusters(), assumptions())
def test_a_beam_never_beats_the_best_plan(g: Graph, c: Cluster, a: Assumptions) -> None:
    a = replace(a, communication="relay")
    best = min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)
    problem = Problem(g, c, a)
    for answer in updates("beam search", problem):
        found = Candidate.of(problem, answer.stages)
        if found is not None:
            assert best is not None
            assert found.value >= best * (1 - 1e-9)


@pytest.mark.slow
def test_a_chain_on_unlike_devices_is_nearly_proven() -> None:
    g, c = unlike_chain(0, layers=20, num_devices=12)
    plan = solve(g, c, time_limit_s=120.0, gap=0.04).plan
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []
    assert plan.solver.binding == "prices of intervals"
    assert plan.gap is not None
    assert plan.gap < 0.08
    assert plan.objective_value < min(v for v in (plan.alternatives.even, 1e9) if v is not None)


def test_many_devices_and_a_general_graph_get_a_valid_plan() -> None:
    g, c = layered(seed=1, num_nodes=300, num_devices=40)
    plan = solve(g, c, time_limit_s=3.0, enforce_peaks=False).plan
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []


def test_generated_instances_are_the_same_for_a_seed() -> None:
    assert unlike_chain(3, 2, 4) == unlike_chain(3, 2, 4)
    assert unlike_chain(3, 2, 4) != unlike_chain(4, 2, 4)
    assert layered(Random(5).randint(0, 9), 50, 4)[0].nodes
