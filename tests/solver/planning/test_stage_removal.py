"""A plan has no stage that its objective does without."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given

from benchmarks.planner.branching_graphs import inception, nas, on_eight, on_host
from skyfx.solver import (
    Assumptions,
    Cluster,
    Cost,
    Device,
    Graph,
    Link,
    Plan,
    evaluate,
    read,
    solve,
    validate,
)
from skyfx.solver.core.cluster import Wire
from skyfx.solver.core.plan import Communication, Objective
from skyfx.solver.errors import InfeasibleError
from tests.support import ROOT
from tests.support.planning_instances import (
    assumptions,
    cluster,
    clusters,
    cpus,
    graph,
    graphs,
    node,
)
from tests.support.tiers import cases

SLOW, FAST = Wire(bandwidth_bytes_per_s=1.0, latency_s=0.0), 1000.0


def needless(g: Graph, c: Cluster, plan: Plan) -> list[tuple[str, ...]]:
    """Empty stages, by their devices, without which the plan is no worse: of any number of them."""
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    empty = [k for k, (_, ids) in enumerate(placement) if not ids]
    found = []
    for size in range(1, len(empty) + 1):
        for gone in itertools.combinations(empty, size):
            fewer = [stage for k, stage in enumerate(placement) if k not in gone]
            value = evaluate(g, c, fewer, plan.assumptions).objective_value
            if value <= plan.objective_value:
                found.append(tuple(placement[k][0] for k in gone))
    return found


@cases(150)
@given(graphs(), clusters(), assumptions())
def test_no_stage_is_empty_without_need(g: Graph, c: Cluster, a: Assumptions) -> None:
    try:
        plan = solve(g, c, a, enforce_peaks=False).plan
    except InfeasibleError:
        return
    assert needless(g, c, plan) == []
    assert validate(g, c, plan) == ()


def mergeable(g: Graph, c: Cluster, plan: Plan) -> list[int]:
    """Stages that can be one with the next, on either device, with nothing worse for it."""
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    limits = {device.name: device.memory_bytes for device in c.devices}
    before = evaluate(g, c, placement, plan.assumptions)
    found = []
    for k, (one, two) in enumerate(itertools.pairwise(placement)):
        for device in (one[0], two[0]):
            merged = [*placement[:k], (device, (*one[1], *two[1])), *placement[k + 2 :]]
            cost = evaluate(g, c, merged, plan.assumptions)
            fits = all(
                limits[name] is None or needs <= limits[name]
                for (name, _), needs in zip(merged, cost.memory_bytes, strict=True)
            )
            if fits and _no_worse(cost, before):
                found.append(k)
    return found


def _no_worse(one: Cost, other: Cost) -> bool:
    return one.objective_value <= other.objective_value and one.latency_s <= other.latency_s


@cases(150)
@given(graphs(), clusters(), assumptions())
def test_no_two_stages_do_as_well_as_one(g: Graph, c: Cluster, a: Assumptions) -> None:
    try:
        plan = solve(g, c, a, enforce_peaks=False).plan
    except InfeasibleError:
        return
    assert mergeable(g, c, plan) == []


def chain(*seconds: float) -> Graph:
    return graph(
        [
            node(f"n{i}", (f"n{i - 1}",) if i else (), forward_s={"cpu": s}, output_bytes=4.0)
            for i, s in enumerate(seconds)
        ]
    )


def test_neighbours_that_nobody_waits_for_are_one_stage() -> None:
    """The last node is the bottleneck wherever the first two are."""
    plan = solve(chain(1.0, 1.0, 6.0), cpus(1.0, 1.0, 1.0), Assumptions(mode="inference")).plan
    assert [len(stage.nodes) for stage in plan.stages] == [2, 1]
    assert plan.objective_value == plan.lower_bound == 6.0


@pytest.mark.parametrize("communication", ["relay", "host"])
@pytest.mark.parametrize("objective", ["throughput", "step", "latency"])
def test_equal_times_without_work_are_one_stage(
    communication: Communication, objective: Objective
) -> None:
    """All plans are equal where nothing takes time."""
    asked = Assumptions(mode="inference", objective=objective, communication=communication)
    plan = solve(chain(0.0, 0.0, 0.0), cpus(1.0, 1.0, 1.0), asked).plan
    assert [len(stage.nodes) for stage in plan.stages] == [3]


def via_relay() -> tuple[Graph, Cluster]:
    """Two devices with a slow link, and a slow one with fast links to both."""
    devices = [Device(name=name, type=name) for name in ("a", "relay", "b")]
    links = [
        Link(source=one, target=two, bandwidth_bytes_per_s=FAST, latency_s=0.0)
        for one, two in (("a", "relay"), ("relay", "a"), ("relay", "b"), ("b", "relay"))
    ]
    nodes = [
        node("x", forward_s={"a": 4.0}, output_bytes=40.0),
        node("y", ("x",), forward_s={"b": 4.0}, output_bytes=1.0),
    ]
    return graph(nodes), cluster(*devices, links=tuple(links), default=SLOW)


@pytest.mark.parametrize("objective", ["throughput", "step", "latency"])
def test_a_stage_that_passes_values_on_over_fast_links_stays(objective: Objective) -> None:
    g, c = via_relay()
    plan = solve(g, c, Assumptions(mode="inference", objective=objective)).plan
    assert [(s.device, len(s.nodes)) for s in plan.stages] == [("a", 1), ("relay", 0), ("b", 1)]
    assert validate(g, c, plan) == ()
    fast = replace(c, default_link=replace(SLOW, bandwidth_bytes_per_s=FAST))
    direct = solve(g, fast, Assumptions(mode="inference", objective=objective)).plan
    assert [(s.device, len(s.nodes)) for s in direct.stages] == [("a", 1), ("b", 1)]


def six_unlike() -> Cluster:
    """The first six of the eight devices that the captured graphs are planned for."""
    path = ROOT / "benchmarks" / "planner" / "data" / "captured" / "eight.cluster.json"
    eight = read(path, Cluster)
    names = {device.name for device in eight.devices[:6]}
    links = tuple(link for link in eight.links if {link.source, link.target} <= names)
    return replace(eight, devices=eight.devices[:6], links=links)


@pytest.mark.parametrize("made", [inception(0), nas(1, 4), nas(2, 4)], ids=["inception", "a", "b"])
def test_branching_graphs_have_no_stage_without_need(made: Graph) -> None:
    """In relay on six unlike devices, and through the host on three equal ones and a CPU."""
    g, c = on_eight(made, six_unlike())
    host = Assumptions(mode="inference", communication="host")
    for problem in ((g, c, Assumptions()), (*on_host(made, 3), host)):
        plan = solve(*problem, time_limit_s=3.0, gap=0.05).plan
        assert needless(problem[0], problem[1], plan) == []
        assert mergeable(problem[0], problem[1], plan) == []
        assert validate(problem[0], problem[1], plan) == ()
