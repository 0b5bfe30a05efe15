"""The integer program by itself, without the warm start that often leaves it nothing to do."""

import math
from collections.abc import Sequence

import pulp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Device, Graph, Link
from skyfx.solver.core.cluster import Wire
from skyfx.solver.methods import mip_backend
from skyfx.solver.methods.milp import formulation
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import (
    all_plans,
    assumptions,
    cluster,
    clusters,
    cpus,
    graph,
    graphs,
    node,
)
from tests.support.tiers import cases

CLOSE = 1e-6


def fits_anywhere(problem: Problem) -> bool:
    return bool((problem.time_s.min(axis=0) < float("inf")).all())


def minimise(model: formulation.Model, start: dict[str, float]) -> mip_backend.MipAnswer:
    return mip_backend.minimise(model.lp, start, time_limit_s=60.0, gap=0.0)


@cases(120)
@given(graphs(max_nodes=5), clusters(), assumptions())
def test_it_finds_the_best_plan_and_proves_it(g: Graph, c: Cluster, a: Assumptions) -> None:
    problem = Problem(g, c, a)
    best = min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)
    if not fits_anywhere(problem):
        return
    model = formulation.build(problem, 1.0)
    answer = minimise(model, {})
    assert answer.infeasible == (best is None)
    if best is not None:
        found = problem.cost(model.placement(answer.values)).objective_value
        assert found == pytest.approx(best, rel=CLOSE, abs=CLOSE)
        assert answer.bound == pytest.approx(best, rel=CLOSE, abs=CLOSE)


@cases(60)
@given(graphs(max_nodes=4), clusters(), assumptions(), st.data())
def test_every_valid_plan_is_a_solution_of_its_own_cost(
    g: Graph, c: Cluster, a: Assumptions, data: st.DataObject
) -> None:
    plans = [(placement, cost) for placement, cost in all_plans(g, c, a)]
    if not plans:
        return
    placement, cost = data.draw(st.sampled_from(plans))
    problem = Problem(g, c, a)
    model = formulation.build(problem, 1.0)
    start = model.start(by_index(problem, placement))
    for variable in model.lp.variables():
        if variable.name in start:
            variable.lowBound = variable.upBound = start[variable.name]
    answer = minimise(model, {})
    assert answer.values is not None
    assert answer.bound == pytest.approx(cost.objective_value, rel=CLOSE, abs=CLOSE)


def by_index(
    problem: Problem, placement: Sequence[tuple[str, Sequence[str]]]
) -> list[tuple[int, list[int]]]:
    devices = [device.name for device in problem.cluster.devices]
    return [
        (devices.index(name), sorted({problem.unit_of[v] for v in ids})) for name, ids in placement
    ]


def groups(c: Cluster) -> list[list[int]]:
    return Problem(graph([node("a")]), c, Assumptions()).identical_devices


def test_devices_are_identical_only_with_the_same_wires() -> None:
    twins = cpus(1.0, 2.0, 1.0).devices
    slow = {"bandwidth_bytes_per_s": 1.0, "latency_s": 5.0}
    wire = Wire(bandwidth_bytes_per_s=9.0, latency_s=0.0)
    assert groups(cluster(*twins, default=wire)) == [[0, 2], [1]]
    for source, target in (("d0", "d1"), ("d1", "d2"), ("d0", "d2"), ("host", "d0")):
        link = Link(source=source, target=target, **slow)
        assert groups(cluster(*twins, links=(link,), default=wire)) == [[0], [1], [2]]
    both = tuple(Link(source=source, target="d1", **slow) for source in ("d0", "d2"))
    assert groups(cluster(*twins, links=both, default=wire)) == [[0, 2], [1]]


def test_devices_are_identical_only_with_the_same_memory_and_times() -> None:
    small = Device(name="d1", type="cpu", memory_bytes=5.0)
    assert groups(cluster(*cpus(1.0).devices, small)) == [[0], [1]]
    assert groups(cpus(1.0, 1.5)) == [[0], [1]]
    assert groups(cpus(1.0, 1.0, 1.0)) == [[0, 1, 2]]


def test_a_start_names_identical_devices_in_list_order() -> None:
    problem = Problem(graph([node("a"), node("b", ("a",))]), cpus(1.0, 1.0, 1.0), Assumptions())
    start = formulation.build(problem, 1.0).start([(2, [0]), (1, [1])])
    assert {name for name, value in start.items() if value and name[0] == "a"} == {"a_0_2", "a_1_3"}


def test_a_row_that_the_solver_would_leave_out_proves_nothing() -> None:
    problem = pulp.LpProblem("large", pulp.LpMinimize)
    x, y = problem.add_variable("x", 0), problem.add_variable("y", 0)
    problem.setObjective(pulp.lpSum([x, y]))
    problem += 1e16 * x + y >= 1
    problem += x + y >= 2
    answer = mip_backend.minimise(problem, {}, time_limit_s=5, gap=0)
    assert answer.values is None
    assert answer.bound == -math.inf
    assert not answer.infeasible
