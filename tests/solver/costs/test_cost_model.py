"""The cost model by hand: each expected figure is worked out in the picture above it."""

import math
from dataclasses import replace

import pytest
from hypothesis import given

from skyfx.solver import Assumptions, Cluster, Device, Graph, Link, evaluate
from skyfx.solver.core.cluster import Wire
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
)
from tests.support.planning_instances import plan_of as plan
from tests.support.tiers import cases

INFERENCE = Assumptions(mode="inference", microbatches=1)
TRAINING = Assumptions(microbatches=4)


def wired(*slowdowns: float, bandwidth: float = 2.0, latency: float = 0.5) -> Cluster:
    wire = Wire(bandwidth_bytes_per_s=bandwidth, latency_s=latency)
    return cluster(*cpus(*slowdowns).devices, default=wire)


def diamond() -> Graph:
    return graph(
        [
            node("x", op="input", forward_s={}, output_bytes=2.0),
            node("a", ("x",), backward_s={"cpu": 2.0}, output_bytes=4.0, gradient_bytes=4.0),
            node("b", ("a",), backward_s={"cpu": 2.0}, output_bytes=6.0, gradient_bytes=6.0),
            node("c", ("a", "b"), backward_s={"cpu": 2.0}, output_bytes=1.0),
        ]
    )


THREE = [("d0", ["x", "a"]), ("d1", ["b"]), ("d2", ["c"])]


def test_relay_moves_a_value_over_each_boundary_once() -> None:
    #          d0          d1          d2 (slowdown 2)
    #   x ---> a --4--> +--b--6--> +-> c          2 bytes/s, latency 0.5 s
    #                    \---4-----/              (a is relayed through d1)
    #   t_1 = 0.5 + 4/2 = 2.5      t_2 = 0.5 + (4+6)/2 = 5.5
    cost = evaluate(diamond(), wired(1.0, 1.0, 2.0), THREE, INFERENCE)
    assert cost.compute_s == (1.0, 1.0, 2.0)
    assert cost.send_s == (2.5, 5.5, 0.0)
    assert cost.receive_s == (0.0, 2.5, 5.5)
    assert cost.time_s == (3.5, 9.0, 7.5)
    assert cost.bottleneck_s == 9.0
    assert cost.latency_s == 4.0 + 2.5 + 5.5


def test_training_moves_gradients_back_with_a_latency_of_their_own() -> None:
    #   t_1 = 0.5 + 4/2 forward + 0.5 + 4/2 back  = 5
    #   t_2 = 0.5 + 10/2        + 0.5 + 10/2      = 11
    #   each stage computes 1 s forward and 2 s backward
    cost = evaluate(diamond(), wired(1.0, 1.0, 1.0), THREE, TRAINING)
    assert cost.compute_s == (3.0, 3.0, 3.0)
    assert cost.send_s == (5.0, 11.0, 0.0)
    assert cost.time_s == (8.0, 19.0, 14.0)
    assert cost.step_s == (9.0 + 16.0) + 3 * 19.0


def test_operations_of_backward_count_in_training_alone() -> None:
    g = graph(
        [
            node("a", flops=3.0, backward_flops=6.0),
            node("b", ("a",), flops=5.0),
            node("c", ("b",)),
        ]
    )
    placement = [("d0", ["a", "b"]), ("d1", ["c"])]
    assert evaluate(g, cpus(1.0, 2.0), placement, TRAINING).flops == (14.0, 0.0)
    assert evaluate(g, cpus(1.0, 2.0), placement, INFERENCE).flops == (8.0, 0.0)


def test_no_gradient_means_no_message_back() -> None:
    #   x (2 bytes, no gradient) --> a | b        t_1 = 0.5 + 4/2, and nothing back
    g = graph([node("a", output_bytes=4.0), node("b", ("a",))])
    cost = evaluate(g, wired(1.0, 1.0), [("d0", ["a"]), ("d1", ["b"])], TRAINING)
    assert cost.send_s == (2.5, 0.0)


def test_gradients_take_the_other_directions_link() -> None:
    #   d0 --- 1 byte/s, 1 s ---> d1        t_1 = (1 + 4/1) + (3 + 4/4) = 9
    #   d0 <-- 4 bytes/s, 3 s --- d1
    links = (
        Link(source="d0", target="d1", bandwidth_bytes_per_s=1.0, latency_s=1.0),
        Link(source="d1", target="d0", bandwidth_bytes_per_s=4.0, latency_s=3.0),
    )
    g = graph([node("a", output_bytes=4.0, gradient_bytes=4.0), node("b", ("a",))])
    c = cluster(*cpus(1.0, 1.0).devices, links=links)
    cost = evaluate(g, c, [("d0", ["a"]), ("d1", ["b"])], TRAINING)
    assert cost.send_s == (9.0, 0.0)


def test_inputs_enter_at_the_first_stage_and_outputs_leave_at_the_last() -> None:
    #   stage 0      stage 1      stage 2
    #   a (output)   x  b(x)      c(b)
    #   boundary 0|1: x 2 bytes, a 4 bytes       boundary 1|2: a 4 bytes, b 6 bytes
    g = graph(
        [
            node("x", op="input", forward_s={}, output_bytes=2.0),
            node("a", output_bytes=4.0),
            node("b", ("x",), output_bytes=6.0),
            node("c", ("b",)),
        ],
        outputs=("a", "c"),
    )
    stages = [("d0", ["a"]), ("d1", ["x", "b"]), ("d2", ["c"])]
    cost = evaluate(g, wired(1.0, 1.0, 1.0, bandwidth=1.0, latency=0.0), stages, INFERENCE)
    assert cost.send_s == (6.0, 10.0, 0.0)


def test_nothing_to_move_costs_nothing_not_even_latency() -> None:
    g = graph([node("a"), node("b")])
    cost = evaluate(g, wired(1.0, 1.0), [("d0", ["a"]), ("d1", ["b"])], INFERENCE)
    assert cost.send_s == (0.0, 0.0)


def test_without_links_communication_is_free() -> None:
    assert evaluate(diamond(), cpus(1.0, 1.0, 1.0), THREE, TRAINING).send_s == (0.0, 0.0, 0.0)


def test_host_is_written_once_and_read_by_each_other_device() -> None:
    #   d0: x a     a --4--> host         write 0.5 + 4/2 = 2.5   (x stays on d0)
    #   d1: b       reads a: 2.5          writes b: 0.5 + 6/2 = 3.5
    #   d2: c       reads a: 2.5 and b: 3.5; c is the model's output and costs nothing
    a = replace(INFERENCE, communication="host")
    cost = evaluate(diamond(), wired(1.0, 1.0, 1.0), THREE, a)
    assert cost.send_s == (2.5, 3.5, 0.0)
    assert cost.receive_s == (0.0, 2.5, 6.0)
    assert cost.time_s == (3.5, 7.0, 7.0)
    assert cost.latency_s == 3.0 + 6.0 + 8.5


def test_host_uses_each_devices_own_link() -> None:
    links = (
        Link(source="d0", target="host", bandwidth_bytes_per_s=1.0, latency_s=1.0),
        Link(source="host", target="d1", bandwidth_bytes_per_s=4.0, latency_s=0.0),
    )
    g = graph([node("a", output_bytes=4.0), node("b", ("a",))])
    c = cluster(*cpus(1.0, 1.0).devices, links=links)
    a = replace(INFERENCE, communication="host")
    cost = evaluate(g, c, [("d0", ["a"]), ("d1", ["b"])], a)
    assert (cost.send_s, cost.receive_s) == ((5.0, 0.0), (0.0, 1.0))


def test_full_overlap_takes_the_longest_of_the_three() -> None:
    #   stage 1 computes 1, receives 2.5, sends 5.5
    a = replace(INFERENCE, overlap="full")
    cost = evaluate(diamond(), wired(1.0, 1.0, 1.0), THREE, a)
    assert cost.time_s == (2.5, 5.5, 5.5)
    assert cost.latency_s == 3.0 + 2.5 + 5.5


def memory(g: Graph, stages: list[tuple[str, list[str]]], **fields: object) -> tuple[float, ...]:
    a = Assumptions(**({"microbatches": 4} | fields))
    return evaluate(g, cpus(1.0, 1.0, 1.0), stages, a).memory_bytes


def heavy() -> Graph:
    fields = {"parameter_bytes": 10.0, "saved_bytes": 3.0, "output_bytes": 7.0}
    return graph([node("a", **fields), node("b", ("a",), **fields), node("c", ("b",), **fields)])


def test_1f1b_keeps_fewer_activations_in_later_stages() -> None:
    #   stage     0    1    2       parameters 10 * (1 + 1 + 2 of Adam) = 40
    #   alive     3    2    1       activations 3 bytes each
    assert memory(heavy(), [("d0", ["a"]), ("d1", ["b"]), ("d2", ["c"])]) == (49.0, 46.0, 43.0)


def test_1f1b_keeps_no_more_than_there_are_microbatches() -> None:
    stages = [("d0", ["a"]), ("d1", ["b"]), ("d2", ["c"])]
    assert memory(heavy(), stages, microbatches=2) == (46.0, 46.0, 43.0)


def test_gpipe_keeps_all_activations() -> None:
    stages = [("d0", ["a"]), ("d1", ["b", "c"])]
    assert memory(heavy(), stages, schedule="gpipe") == (40.0 + 12.0, 80.0 + 24.0)


def test_sgd_keeps_no_optimizer_state() -> None:
    assert memory(heavy(), [("d0", ["a", "b", "c"])], optimizer_state_ratio=0.0) == (69.0,)


def test_what_is_frozen_has_no_gradient_and_no_optimizer_state() -> None:
    a, b, c = heavy().nodes
    g = graph([replace(a, trainable_bytes=0.0), replace(b, trainable_bytes=4.0), c])
    stages = [("d0", ["a"]), ("d1", ["b"]), ("d2", ["c"])]
    assert memory(g, stages) == (10.0 + 9.0, 10.0 + 4.0 * 3 + 6.0, 40.0 + 3.0)
    assert memory(g, stages, mode="inference") == (17.0, 17.0, 17.0)


def test_inference_keeps_parameters_and_the_largest_output() -> None:
    stages = [("d0", ["a"]), ("d1", ["b", "c"])]
    assert memory(heavy(), stages, mode="inference") == (17.0, 27.0)


@pytest.mark.parametrize(
    ("objective", "expected"), [("throughput", 9.0), ("latency", 11.0), ("step", 38.0)]
)
def test_objectives(objective: str, expected: float) -> None:
    #   latency 3 + 2.5 + 5.5 = 11, bottleneck 1 + 2.5 + 5.5 = 9, step 11 + 3 * 9 = 38
    a = replace(INFERENCE, objective=objective, microbatches=4)
    cost = evaluate(diamond(), wired(1.0, 1.0, 1.0), THREE, a)
    assert cost.objective_value == expected
    assert cost.step_s == 38.0


def test_a_type_without_a_time_makes_the_figures_infinite() -> None:
    c = cluster(Device(name="d0", type="tpu"))
    assert math.isinf(evaluate(diamond(), c, [("d0", list("xabc"))], INFERENCE).bottleneck_s)


@cases(150)
@given(graphs(max_nodes=5), clusters(), assumptions())
def test_the_referee_counts_the_same(g: Graph, c: Cluster, a: Assumptions) -> None:
    for number, (placement, _) in enumerate(all_plans(g, c, a)):
        if number % 40 == 0:
            assert referee_faults(g, c, plan(g, c, a, placement)) == []
