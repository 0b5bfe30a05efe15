"""Relaxed units: fewer ideals, and what they cost at least, against every plan."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph
from skyfx.solver.methods.ideals.device_states import States
from skyfx.solver.methods.ideals.order_ideals import Ideals, members_of
from skyfx.solver.methods.ideals.relaxed_charges import RelaxedCharges
from skyfx.solver.methods.ideals.relaxed_units import relax_until, work_share
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import all_plans, assumptions, clusters, graphs

MANY, CLOSE = 10_000, 1e-9

relaxed_sets = st.sets(st.integers(0, 5), max_size=3)


@given(graphs(), clusters(), assumptions(), st.integers(1, 12))
def test_units_are_relaxed_until_there_are_few_ideals(
    g: Graph, c: Cluster, a: Assumptions, at_most: int
) -> None:
    problem = Problem(g, c, a)
    all_of_them, found = Ideals.of(problem, MANY), relax_until(problem, at_most)
    assert all_of_them is not None
    if found is None:
        assert len(all_of_them) > at_most
        return
    ideals, relaxed = found
    assert len(ideals) <= at_most
    assert bool(relaxed) == (len(all_of_them) > at_most)
    assert set(relaxed) <= ideals.outside
    assert 0 <= work_share(problem, relaxed) <= 0.5 + CLOSE


@given(graphs(), clusters(), assumptions(), relaxed_sets)
def test_relaxed_units_leave_the_order_of_the_others(
    g: Graph, c: Cluster, a: Assumptions, units: set[int]
) -> None:
    problem = Problem(g, c, a)
    units = {i for i in units if i < problem.num_units}
    whole, rest = Ideals.of(problem, MANY), Ideals.of(problem, MANY, units)
    assert whole is not None
    assert rest is not None
    found = {frozenset(members_of(row)) for row in rest.members}
    assert found == {frozenset(members_of(row)) - units for row in whole.members}


@given(graphs(), clusters(), assumptions(), relaxed_sets)
def test_every_plan_takes_at_least_what_is_charged(
    g: Graph, c: Cluster, a: Assumptions, units: set[int]
) -> None:
    a = replace(a, communication="relay", overlap="none")
    problem = Problem(g, c, a)
    states = States(problem)
    runs = np.isfinite(states.time_s).any(axis=0)  # a unit that runs nowhere leaves no plan
    relaxed = [i for i in sorted(units) if i < problem.num_units and runs[i]]
    price = states.price
    charges = RelaxedCharges.of(problem, states, relaxed)
    group_of = {c.devices[d].name: x for x, group in enumerate(states.groups) for d in group}
    left = sum(tree.weight for tree in charges.trees)
    with np.errstate(invalid="ignore"):
        charged = states.time_s + charges.time_s
    for placement, cost in all_plans(g, c, a):
        weighted = least = 0.0
        for (name, nodes), time_s in zip(placement, cost.time_s, strict=True):
            x = group_of[name]
            own = sorted({problem.unit_of[node] for node in nodes} - set(relaxed))
            least_s = float(charged[x, own].sum())
            assert time_s >= least_s * (1 - CLOSE) - CLOSE
            weighted, least = weighted + price[x] * time_s, least + price[x] * least_s
        assert weighted >= (least + left) * (1 - CLOSE) - CLOSE
