"""A plan in sentences."""

import json
from dataclasses import replace

from skyfx.solver import Assumptions, Cluster, Device, Graph, Link, solve
from skyfx.solver.analysis.explain import explained
from skyfx.solver.cli.simulate import replanning
from tests.support.cli_runner import SOLVE, Run
from tests.support.planning_instances import cluster, graph, node

ASKED = Assumptions(mode="inference", microbatches=4)

# a (2 s) | b (2 s): a message of 10 bytes at 10 bytes a second keeps both ends for a second.
#
#     one  |   0   |   1   |   2   |   3   |
#     two          |   0   |   1   |   2   |   3   |
MODEL = graph(
    [
        node("x", op="input", forward_s={}, output_bytes=0.0),
        node("a", ("x",), forward_s={"cpu": 2.0}, output_bytes=10.0, parameter_bytes=60.0),
        node("b", ("a",), forward_s={"cpu": 2.0}, output_bytes=0.0, parameter_bytes=60.0),
    ]
)


def pair(memory: float | None = None) -> Cluster:
    devices = [Device(name=name, type="cpu", memory_bytes=memory) for name in ("one", "two")]
    links = [
        Link(source=a, target=b, bandwidth_bytes_per_s=10.0, latency_s=0.0)
        for a, b in (("one", "two"), ("two", "one"))
    ]
    return cluster(*devices, links=tuple(links))


def said(model: Graph, devices: Cluster) -> list[str]:
    plan = solve(model, devices, ASKED).plan
    return list(explained(model, devices, plan, replanning(plan, 5.0)))


def test_a_plan_is_told_in_sentences() -> None:
    """Of 15 s, a link a tenth faster saves 5/11 s, a device 2/11 s where it sends or ends."""
    assert said(MODEL, pair()) == [
        "Stage 0 on one binds: 3 s a micro-batch, 2 s computing, 1 s sending.",
        "A step takes 15 s when it is followed; its devices are busy for 80% to 80% of it.",
        "The plan's throughput is 3 s, and no plan for these files is below 3 s, as 'level dp' "
        "proves: it is within 0.00% of the best.",
        "An even split would have 4 s, 1.33 times as much.",
        "The dynamic rule would have 3 s, 1.00 times as much.",
        "The best single device would have 4 s, 1.33 times as much.",
        "A tenth more of the link one - two would bring 3.0% of the step (14.5 s), the same plan "
        "would do.",
        "A tenth more of one would bring 1.2% of the step (14.8 s), the same plan would do.",
        "A tenth more of two would bring 1.2% of the step (14.8 s), the same plan would do.",
    ]


def test_operations_are_told_where_the_graph_has_them() -> None:
    """Of 2 s on each device; in inference backward counts nothing."""
    amounts = zip(MODEL.nodes, (0.0, 3e9, 8e9), strict=True)
    counts = [replace(n, flops=flops, backward_flops=1e12) for n, flops in amounts]
    assert said(replace(MODEL, nodes=tuple(counts)), pair())[2] == (
        "A micro-batch takes 11.0 GFLOP (matrix products, convolutions, attention): "
        "one does 1.5 GFLOP/s and two does 4.0 GFLOP/s."
    )


def test_memory_that_binds_is_told() -> None:
    """One device could take all of it if it had a tenth more, and would not have to send it."""
    narrow = [replace(link, bandwidth_bytes_per_s=1.0) for link in pair().links]
    found = said(MODEL, replace(pair(120.0), links=tuple(narrow)))
    assert "The best single device does not fit into memory." in found
    assert "Stage 0 takes 70 B of the 120 B that one has (58%)." in found
    assert (
        "A tenth more of one's memory would bring 73.3% of the step (16 s), with another plan; "
        "with this one nothing."
    ) in found


def test_the_command_prints_the_same(skyfx: Run) -> None:
    assert skyfx(*SOLVE, "-o", "p.plan.json", "-q").returncode == 0
    lines = skyfx("explain", "p.plan.json").stdout.splitlines()
    assert lines[0] == "Stage 0 on one binds: 1 s a micro-batch, 1 s computing."
    assert json.loads(skyfx("explain", "p.plan.json", "--json").stdout) == lines
