"""Where no plan can exist, the message says why, with both numbers and what would help."""

import pytest

from skyfx.solver import Assumptions, Cluster, Device, Graph, solve
from skyfx.solver.errors import InfeasibleError, NoPlanError
from tests.support.planning_instances import cluster, cpus, graph, node

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
        "Each of these would help: 2.0 GiB more memory on 'b'; an optimizer such as plain SGD "
        "(state ratio 0 instead of 2); planning for inference; or another device."
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
        "Each of these would help: 2.0 GiB more memory on 'd0'; an optimizer such as SGD with "
        "momentum (state ratio 1 instead of 2); planning for inference; or another device."
    )


def test_gpipe_is_told_of_the_schedule_and_the_microbatches() -> None:
    said = message(
        graph([node("a", saved_bytes=1.0)]), cpus(1.0, memory=5.0), schedule="gpipe", microbatches=6
    )
    assert "'a' needs 6 B, the largest device has 5 B." in said
    assert (
        "1 B more memory on 'd0'; 5 micro-batches instead of 6; the 1f1b schedule; planning" in said
    )


def test_parts_that_fit_but_never_together() -> None:
    # three nodes of 3 bytes on two devices of 5 bytes: 9 of 10 bytes, but one device gets two
    nodes = [node(f"n{i}", parameter_bytes=3.0, output_bytes=0.0) for i in range(3)]
    said = message(graph(nodes), cpus(1.0, 1.0, memory=5.0), mode="inference")
    assert said.startswith("it is proven that no split of 3 units over 2 devices")
    assert said.endswith("Each of these would help: 1 B more memory on 'd0'; or another device.")


def test_what_is_advised_helps() -> None:
    # the first stage keeps all four micro-batches, and no pin lets the nodes change places
    nodes = [node(f"n{i}", (f"n{i - 1}",) if i else (), saved_bytes=4.0) for i in range(4)]
    c, pins = cpus(1.0, 1.0, memory=20.0), ("n0=d0", "n1=d0", "n2=d0", "n3=d1")
    said = message(graph(nodes), c, pins=pins)
    assert "it is proven" in said
    assert "as the pins ask" in said
    assert "1 micro-batches instead of 8" in said
    assert "leaving out the pin 'n2=d0'" in said
    assert "leaving out the pin 'n0=d0'" not in said
    assert "planning for inference" in said
    for fields in ({"microbatches": 1}, {"pins": ("n0=d0", "n1=d0", "n3=d1")}):
        assert solve(graph(nodes), c, Assumptions(**({"pins": pins} | fields))).plan.stages


def test_nothing_is_advised_that_does_not_help() -> None:
    chained = [
        node("n0", forward_s={"a": 1.0}),
        node("n1", ("n0",), forward_s={"b": 1.0}),
        node("n2", ("n1",), forward_s={"a": 1.0}),
    ]
    c = cluster(Device(name="a", type="a", memory_bytes=1.0), Device(name="b", type="b"))
    said = message(graph(chained), c)
    assert said.endswith("Add a device that has what is missing.")


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
