"""Where no plan can exist, the message says why, with both numbers and what would help."""

import pytest

from skyfx.solver import Assumptions, Cluster, Device, Graph, solve
from skyfx.solver.errors import InfeasibleError, NoPlanError
from tests.instances import cluster, cpus, graph, node

GIB = 2.0**30


def message(g: Graph, c: Cluster, **fields: object) -> str:
    with pytest.raises(InfeasibleError) as caught:
        solve(g, c, Assumptions(**fields))
    return str(caught.value)


def test_a_node_that_no_device_can_run() -> None:
    g = graph([node("a"), node("b", ("a",), forward_s={"tpu": 1.0})])
    said = message(g, cpus(1.0, 1.0))
    assert said.startswith("no device can run 'b': the cluster has the types cpu.")
    assert "add a device of a type that it has times for" in said


def test_a_node_too_large_for_every_device() -> None:
    c = cluster(
        *(Device(name=n, type="cpu", memory_bytes=m * GIB) for n, m in (("a", 1), ("b", 2)))
    )
    said = message(graph([node("big", parameter_bytes=GIB)]), c)
    assert said == (
        "'big' needs 4.0 GiB, the largest device has 2.0 GiB.\n"
        "Add a device, or raise `memory_bytes` of one, or plan for inference."
    )


def test_colocated_nodes_too_large_for_every_device() -> None:
    nodes = [node(f"n{i}", colocate="tied", parameter_bytes=GIB) for i in range(3)]
    said = message(graph(nodes), cpus(1.0, 1.0, memory=2 * GIB), mode="inference")
    assert said.startswith(
        "'n0' with the 2 nodes that it must stay with needs 3.0 GiB, "
        "the largest device has 2.0 GiB."
    )
    assert "inference" not in said


def test_a_model_too_large_for_all_devices_together() -> None:
    nodes = [node(f"n{i}", parameter_bytes=GIB / 4) for i in range(10)]
    said = message(graph(nodes), cpus(1.0, 1.0, memory=4 * GIB))
    assert said == (
        "the model needs 10.0 GiB, the devices offer 8.0 GiB\n"
        "  d0  4.0 GiB\n"
        "  d1  4.0 GiB\n"
        "Add a device, or raise `memory_bytes` of one, or plan for inference."
    )


def test_gpipe_is_told_of_the_schedule_and_the_microbatches() -> None:
    said = message(
        graph([node("a", saved_bytes=1.0)]), cpus(1.0, memory=5.0), schedule="gpipe", microbatches=6
    )
    assert "'a' needs 6 B, the largest device has 5 B." in said
    assert "or use the 1f1b schedule, or fewer micro-batches (now 6)." in said


def test_parts_that_fit_but_never_together() -> None:
    # three nodes of 3 bytes on two devices of 5 bytes: 9 of 10 bytes, but one device gets two
    nodes = [node(f"n{i}", parameter_bytes=3.0, output_bytes=0.0) for i in range(3)]
    said = message(graph(nodes), cpus(1.0, 1.0, memory=5.0), mode="inference")
    assert said.startswith("it is proven that no split of 3 units over 2 devices")
    assert "Raise `memory_bytes` of a device" in said


def test_a_baseline_that_does_not_fit_is_not_infeasible() -> None:
    small = Device(name="small", type="cpu", memory_bytes=4.0)
    large = Device(name="large", type="cpu")
    g = graph([node(f"n{i}", parameter_bytes=1.0) for i in range(4)])
    with pytest.raises(NoPlanError, match="the even split does not fit these devices"):
        solve(g, cluster(small, large), strategy="even")


def test_no_time_for_a_first_plan_is_not_infeasible() -> None:
    # a b a b by the types that run them: no intervals of this order fit two devices
    nodes = [
        node(f"n{i}", forward_s=s)
        for i, s in enumerate([{"a": 1.0}, {"b": 1.0}, {"a": 1.0}, {"b": 1.0}])
    ]
    c = cluster(Device(name="a", type="a"), Device(name="b", type="b"))
    with pytest.raises(NoPlanError, match="no plan was found in 0 s, though one may exist"):
        solve(graph(nodes), c, time_limit_s=0.0)
    assert len(solve(graph(nodes), c).plan.stages) == 2
