"""`skyfx diff`: what moved, and what it changed."""

from dataclasses import replace

from skyfx.solver import Assumptions, Plan
from skyfx.solver.analysis.plan_diff import Difference
from tests.support.planning_instances import cpus, graph, node, plan_of

NODES = [node(f"n{i}", (f"n{i - 1}",) if i else ()) for i in range(4)]


def plan(first: int) -> Plan:
    ids = [n.id for n in NODES]
    stages = [("d0", ids[:first]), ("d1", ids[first:])]
    return plan_of(graph(NODES), cpus(1.0, 1.0), Assumptions(), stages)


def test_equal_plans_do_not_differ() -> None:
    found = Difference.of(plan(2), plan(2))
    assert not found.differ
    assert found.moved == {}


def test_a_node_that_moved_and_what_it_costs() -> None:
    found = Difference.of(plan(2), plan(3))
    assert found.differ
    assert found.moved == {"n2": ("d1", "d0")}
    lines = [*found.lines()]
    assert "bottleneck_s: 2 s -> 3 s (+50.00%)" in lines
    assert "a: d0 (2) -> d1 (2)" in lines
    assert "moved from d1 to d0: 'n2'" in lines
    assert found.as_json()["bottleneck_s"] == [2.0, 3.0]


def test_many_moved_nodes_are_one_line() -> None:
    lines = [*Difference.of(plan(1), plan(3)).lines()]
    assert "moved from d1 to d0: 2 nodes, 'n1' first" in lines


def test_other_nodes_and_other_assumptions_are_said() -> None:
    other = plan(2)
    stages = (replace(other.stages[0], nodes=("n0", "new")), other.stages[1])
    other = replace(other, stages=stages, assumptions=replace(other.assumptions, microbatches=3))
    found = Difference.of(plan(2), other)
    lines = [*found.lines()]
    assert lines[0] == "microbatches: 8 -> 3"
    assert lines[-2:] == ["only in a: 'n1'", "only in b: 'new'"]
    assert found.differ


def test_devices_in_another_order_differ() -> None:
    one = plan(2)
    assert Difference.of(one, replace(one, stages=one.stages[::-1])).differ
