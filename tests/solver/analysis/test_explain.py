"""A plan in sentences."""

import json
from dataclasses import replace

import pytest

from skyfx.solver import Assumptions, Cluster, Device, Graph, Link, solve
from skyfx.solver.analysis.explain import explain_plan
from skyfx.solver.cli.simulate import make_replan
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
    return list(explain_plan(model, devices, plan, make_replan(plan, 5.0)))


def test_a_plan_is_told_in_sentences() -> None:
    """Of 15 s, a link a tenth faster saves 5/11 s, a device 2/11 s where it sends or ends."""
    assert said(MODEL, pair()) == [
        "Stage 0 on one is the bottleneck: 3 s per micro-batch, 2 s computing, 1 s sending.",
        "A simulated step takes 15 s; the devices are busy for 80% to 80% of it.",
        "The plan's throughput is 3 s. No plan for these files is below 3 s (proven by "
        "'level dp'): gap 0.00%.",
        "An even split would take 4 s, 1.33 times as long.",
        "The dynamic rule would take 3 s, 1.00 times as long.",
        "The best single device would take 4 s, 1.33 times as long.",
        "A tenth more of the link one - two would save 3.0% of the step (14.5 s), with the "
        "same plan.",
        "A tenth more of one would save 1.2% of the step (14.8 s), with the same plan.",
        "A tenth more of two would save 1.2% of the step (14.8 s), with the same plan.",
    ]


def test_operations_are_told_where_the_graph_has_them() -> None:
    """Of 2 s on each device; in inference backward counts nothing."""
    amounts = zip(MODEL.nodes, (0.0, 3e9, 8e9), strict=True)
    counts = [replace(n, flops=flops, backward_flops=1e12) for n, flops in amounts]
    assert said(replace(MODEL, nodes=tuple(counts)), pair())[2] == (
        "A micro-batch takes 11.0 GFLOP (matrix products, convolutions, attention): "
        "one runs 1.5 GFLOP/s and two runs 4.0 GFLOP/s."
    )


@pytest.mark.slow
def test_memory_that_binds_is_told() -> None:
    """One device could take all of it if it had a tenth more, and would not have to send it."""
    narrow = [replace(link, bandwidth_bytes_per_s=1.0) for link in pair().links]
    found = said(MODEL, replace(pair(120.0), links=tuple(narrow)))
    assert "The best single device does not fit into memory." in found
    assert "Stage 0 needs 70 B of the 120 B of one (58%)." in found
    assert (
        "A tenth more of one's memory would save 73.3% of the step (16 s), with another plan; "
        "with this one nothing."
    ) in found


def test_the_command_prints_the_same(skyfx: Run) -> None:
    assert skyfx(*SOLVE, "-o", "p.plan.json", "-q").returncode == 0
    lines = skyfx("explain", "p.plan.json").stdout.splitlines()
    assert lines[0] == "Stage 0 on one is the bottleneck: 1 s per micro-batch, 1 s computing."
    assert json.loads(skyfx("explain", "p.plan.json", "--json").stdout) == lines
