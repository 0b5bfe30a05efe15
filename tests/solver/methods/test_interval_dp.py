"""The interval DP: right on chains, and never better than trying everything."""

from hypothesis import given

from skyfx.solver import Assumptions, Cluster, Cost, Device, Graph
from skyfx.solver.core.cluster import Wire
from skyfx.solver.methods.exact.interval_dp import MAX_EXACT_DEVICES, interval_plan
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import (
    all_plans,
    assumptions,
    chains,
    cluster,
    clusters,
    cpus,
    graph,
    graphs,
    node,
)
from tests.support.tiers import cases

CLOSE = 1.0001
"""The DP bisects to a relative distance of 1e-5."""


def interval_cost(g: Graph, c: Cluster, a: Assumptions) -> Cost | None:
    problem = Problem(g, c, a)
    stages = interval_plan(problem, float("inf"))
    if stages is None:
        return None
    cost = problem.cost(stages)
    assert problem.fits(cost, stages)
    return cost


def best_bottleneck(g: Graph, c: Cluster, a: Assumptions) -> float | None:
    return min((cost.bottleneck_s for _, cost in all_plans(g, c, a)), default=None)


@cases(150)
@given(chains(), clusters(), assumptions())
def test_it_is_the_best_on_chains(g: Graph, c: Cluster, a: Assumptions) -> None:
    cost, best = interval_cost(g, c, a), best_bottleneck(g, c, a)
    assert (cost is None) == (best is None)
    if cost is not None:
        assert best <= cost.bottleneck_s * CLOSE
        assert cost.bottleneck_s <= best * CLOSE + 1e-9


@cases(150)
@given(graphs(), clusters(), assumptions())
def test_it_is_never_better_than_the_best(g: Graph, c: Cluster, a: Assumptions) -> None:
    cost, best = interval_cost(g, c, a), best_bottleneck(g, c, a)
    assert cost is None or best <= cost.bottleneck_s * CLOSE


@cases(50)
@given(chains(), clusters(), assumptions())
def test_it_says_when_nothing_keeps_the_bottleneck(g: Graph, c: Cluster, a: Assumptions) -> None:
    best = best_bottleneck(g, c, a)
    if best:
        assert interval_plan(Problem(g, c, a), best * 0.99) is None
        assert interval_plan(Problem(g, c, a), best * 1.01) is not None


def test_a_deadline_leaves_the_first_plan_found() -> None:
    problem = Problem(graph([node("a"), node("b", ("a",))]), cpus(1.0, 1.0), Assumptions())
    assert interval_plan(problem, float("inf"), deadline=0.0) is not None


def test_a_device_that_cannot_run_the_first_unit_may_run_the_rest() -> None:
    #  a (cpu only) --> b --> c (10 s on cpu, 1 s on gpu)
    both = {"cpu": 10.0, "gpu": 1.0}
    g = graph(
        [
            node("a", forward_s={"cpu": 1.0}),
            node("b", ("a",), forward_s=both),
            node("c", ("b",), forward_s=both),
        ]
    )
    c = cluster(Device(name="cpu", type="cpu"), Device(name="gpu", type="gpu"))
    assert interval_cost(g, c, Assumptions()).bottleneck_s == 2.0


def test_more_devices_than_can_be_tried_in_every_order() -> None:
    # 12 equal nodes on 8 equal devices: two on the fullest, whatever the order
    g = graph([node(f"n{i}", (f"n{i - 1}",) if i else ()) for i in range(12)])
    assert MAX_EXACT_DEVICES < 8
    assert interval_cost(g, cpus(*[1.0] * 8), Assumptions()).bottleneck_s == 2.0


def test_a_long_model_is_cut_where_little_is_alive() -> None:
    # blocks of three nodes; inside a block 9 bytes are alive, between blocks 1 byte
    nodes = [
        node(f"n{i}", (f"n{i - 1}",) if i else (), output_bytes=1.0 if i % 3 == 2 else 9.0)
        for i in range(900)
    ]
    wire = Wire(bandwidth_bytes_per_s=0.5, latency_s=0.0)
    c = cluster(*cpus(1.0, 1.0).devices, default=wire)
    cost = interval_cost(graph(nodes), c, Assumptions())
    assert cost.send_s[0] == 2.0
    assert cost.bottleneck_s <= 455.0
