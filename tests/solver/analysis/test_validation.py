"""Each rule of a plan, broken in turn, is found; what breaks none is valid."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given

from skyfx.solver import Assumptions, Cluster, Device, Graph, Plan, validate
from tests.support.independent_validator import referee_faults
from tests.support.planning_instances import (
    all_plans,
    assumptions,
    cluster,
    clusters,
    cpus,
    graph,
    graphs,
    node,
    plan_of,
)
from tests.support.tiers import cases

MODEL = graph(
    [
        node("a", parameter_bytes=1.0, colocate="tied"),
        node("b", ("a",), parameter_bytes=1.0, colocate="tied"),
        node("c", ("b",), parameter_bytes=2.0, forward_s={"cpu": 3.0}),
        node("d", ("c",), parameter_bytes=2.0),
    ]
)
DEVICES = cluster(
    *cpus(1.0, 1.0, memory=16.0).devices,
    Device(name="tpu", type="tpu", slowdown=2.0),
)
GOOD = [("d0", ["a", "b"]), ("d1", ["c", "d"])]


def plan(*stages: tuple[str, list[str]]) -> Plan:
    return plan_of(MODEL, DEVICES, Assumptions(), stages or GOOD)


def faults(broken: Plan) -> tuple[str, ...]:
    """What is wrong with it; the referee finds something too."""
    found = validate(MODEL, DEVICES, broken)
    assert bool(referee_faults(MODEL, DEVICES, broken)) == bool(found)
    return found


def test_what_comes_after_another_is_in_no_earlier_stage_of_training() -> None:
    g = graph([node("a"), node("b", ("a",)), node("c", ("a",), after=("b",))])
    placement = [("d0", ["a", "c"]), ("d1", ["b"])]
    trains = plan_of(g, DEVICES, Assumptions(), placement)
    assert validate(g, DEVICES, trains) == (
        "node 'c' in stage 0 comes after 'b', which is in stage 1",
    )
    assert referee_faults(g, DEVICES, trains)
    infers = plan_of(g, DEVICES, Assumptions(mode="inference"), placement)
    assert validate(g, DEVICES, infers) == ()
    assert not referee_faults(g, DEVICES, infers)


def with_stage(k: int, **fields: object) -> Plan:
    stages = list(plan().stages)
    stages[k] = replace(stages[k], **fields)
    return replace(plan(), stages=tuple(stages))


def test_a_good_plan_has_no_faults() -> None:
    assert faults(plan()) == ()


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (lambda: with_stage(1, device="gpu"), "stage 1: device 'gpu' is not in the cluster"),
        (lambda: with_stage(1, device="d0"), "stage 1: device 'd0' already holds stage 0"),
        (lambda: with_stage(1, nodes=("c",)), "1 of 4 nodes are in no stage, for one 'd'"),
        (lambda: with_stage(1, nodes=("c", "d", "e")), "stage 1: 'e' is no node of the graph"),
        (lambda: with_stage(1, nodes=("b", "c", "d")), "stage 1: node 'b' is in a stage already"),
        (
            lambda: plan(("d0", ["c", "d"]), ("d1", ["a", "b"])),
            "node 'c' in stage 0 reads 'b', which stage 1 makes",
        ),
        (
            lambda: plan(("d0", ["a"]), ("d1", ["b", "c", "d"])),
            "colocation 'tied' is split over stages [0, 1]",
        ),
        (lambda: plan(("d0", ["a", "b", "c", "d"])), "stage 0: needs 24 bytes, 'd0' has 16"),
    ],
)
def test_a_broken_rule_is_found(broken: Callable[[], Plan], fault: str) -> None:
    assert any(fault in found for found in faults(broken()))


def test_a_node_on_a_type_that_cannot_run_it_is_found() -> None:
    wrong = plan(*GOOD)
    wrong = replace(wrong, stages=(wrong.stages[0], replace(wrong.stages[1], device="tpu")))
    assert faults(wrong) == (
        "stage 1: 'tpu' of type 'tpu' cannot run 'c'",
        "stage 1: 'tpu' of type 'tpu' cannot run 'd'",
    )


@pytest.mark.parametrize("field", ["bottleneck_s", "step_s", "objective_value"])
def test_a_wrong_figure_of_the_plan_is_found(field: str) -> None:
    right = getattr(plan(), field)
    wrong = replace(plan(), **{field: right + 0.001})
    assert f"{field}: the plan says {right + 0.001!r}, it is {right!r}" in faults(wrong)


@pytest.mark.parametrize("field", ["compute_s", "receive_s", "send_s", "time_s", "memory_bytes"])
def test_a_wrong_figure_of_a_stage_is_found(field: str) -> None:
    right = getattr(plan().stages[1], field)
    wrong = with_stage(1, **{field: right + 0.001})
    assert f"stage 1 {field}: the plan says {right + 0.001!r}, it is {right!r}" in faults(wrong)


def test_operations_that_are_not_those_of_the_nodes_are_found() -> None:
    """Where the graph or the plan has none, there is nothing to compare."""
    counts = replace(MODEL, nodes=tuple(replace(n, flops=2.0) for n in MODEL.nodes))
    right = plan_of(counts, DEVICES, Assumptions(), GOOD)
    assert [stage.flops for stage in right.stages] == [4.0, 4.0]
    wrong = replace(right, stages=(right.stages[0], replace(right.stages[1], flops=5.0)))
    for found, expected in (
        (validate(counts, DEVICES, right), ()),
        (validate(counts, DEVICES, wrong), ("stage 1 flops: the plan says 5.0, it is 4.0",)),
        (validate(counts, DEVICES, plan()), ()),
        (validate(MODEL, DEVICES, wrong), ()),
    ):
        assert found == expected
    assert referee_faults(counts, DEVICES, right) == []
    assert referee_faults(counts, DEVICES, wrong) == ["stage 1 flops: 5.0, recomputed 4.0"]


def test_a_bound_above_the_plan_is_found() -> None:
    value = plan().objective_value
    wrong = replace(plan(), lower_bound=value * 1.1, gap=0.0)
    assert any("is above the plan's" in fault for fault in faults(wrong))


@pytest.mark.parametrize("gap", [0.0, 1.01, None])
def test_a_wrong_gap_is_found(gap: float | None) -> None:
    (fault,) = faults(replace(plan(), gap=gap))
    assert fault == f"gap: the plan says {gap!r}, objective_value / lower_bound - 1 is 1.0"


def test_a_bound_of_zero_has_no_gap() -> None:
    assert faults(replace(plan(), lower_bound=0.0, gap=None)) == ()
    assert faults(replace(plan(), lower_bound=0.0, gap=9.0)) != ()


def test_a_node_named_like_a_fault_hides_no_figure() -> None:
    named = graph([node("a cannot run", colocate="x"), node("b", colocate="x")], outputs=("b",))
    split = [("d0", ["a cannot run"]), ("d1", ["b"])]
    wrong = replace(plan_of(named, cpus(1.0, 1.0), Assumptions(), split), step_s=1e9)
    named_label = replace(
        named, nodes=tuple(replace(n, colocate="cannot run") for n in named.nodes)
    )
    found = validate(named_label, cpus(1.0, 1.0), wrong)
    assert any("step_s" in fault for fault in found)


@cases(100)
@given(graphs(max_nodes=5), clusters(), assumptions())
def test_every_plan_that_keeps_the_rules_is_valid(g: Graph, c: Cluster, a: Assumptions) -> None:
    for number, (placement, _) in enumerate(all_plans(g, c, a)):
        if number % 40 == 0:
            assert validate(g, c, plan_of(g, c, a, placement)) == ()


@cases(60)
@given(graphs(max_nodes=4), clusters(), clusters(), assumptions())
def test_validate_and_the_referee_agree_about_any_cluster(
    g: Graph, c: Cluster, other: Cluster, a: Assumptions
) -> None:
    placement = next((placement for placement, _ in all_plans(g, c, a)), None)
    if placement is not None:
        plan = plan_of(g, c, a, placement)
        assert bool(validate(g, other, plan)) == bool(referee_faults(g, other, plan))
