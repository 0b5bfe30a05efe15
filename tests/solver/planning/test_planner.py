"""The laws that every plan keeps, on random small problems, against trying everything."""

import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pulp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Device, Graph, Plan, read, solve, validate, write
from skyfx.solver.core.cluster import Wire
from skyfx.solver.errors import InfeasibleError, NoPlanError
from tests.support.independent_validator import referee_faults
from tests.support.planning_instances import (
    all_plans,
    assumptions,
    clusters,
    cpus,
    graph,
    graphs,
    hard_problem,
    node,
)
from tests.support.tiers import cases

CLOSE = 1e-6


def best_value(g: Graph, c: Cluster, a: Assumptions) -> float | None:
    return min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)


def solved(g: Graph, c: Cluster, a: Assumptions) -> Plan | None:
    try:
        return solve(g, c, a, enforce_peaks=False).plan
    except InfeasibleError:
        return None


def value(g: Graph, c: Cluster, a: Assumptions) -> float:
    """The best plan's objective; infinite where no plan exists."""
    plan = solved(g, c, a)
    return float("inf") if plan is None else plan.objective_value


def same(expected: float) -> object:
    return pytest.approx(expected, rel=CLOSE, abs=1e-9)


def check_best(g: Graph, c: Cluster, a: Assumptions) -> None:
    plan, best = solved(g, c, a), best_value(g, c, a)
    assert (plan is None) == (best is None)
    if plan is not None:
        assert plan.objective_value == same(best)
        assert plan.lower_bound <= best * (1 + CLOSE) + 1e-9
        assert plan.solver.status == "optimal"
        assert validate(g, c, plan) == ()
        assert referee_faults(g, c, plan) == []


@cases(400)
@given(graphs(), clusters(), assumptions())
def test_the_plan_is_the_best_of_all_plans(g: Graph, c: Cluster, a: Assumptions) -> None:
    check_best(g, c, a)


@st.composite
def twins(draw: st.DrawFn) -> Cluster:
    """Three devices of which at least two are the same but for the name, with equal wires."""
    c = draw(clusters(max_devices=2))
    names = ["d0", "d1", "d2"]
    first, last = c.devices[0], c.devices[-1]
    devices = draw(st.permutations([first, first, last]))
    renamed = [replace(device, name=name) for device, name in zip(devices, names, strict=True)]
    return replace(c, devices=tuple(renamed), links=())


@cases(100)
@given(graphs(max_nodes=5), twins(), assumptions())
def test_identical_devices_lose_no_plan(g: Graph, c: Cluster, a: Assumptions) -> None:
    check_best(g, c, a)


@cases(30)
@given(graphs(max_nodes=5), clusters(), assumptions(), st.randoms(use_true_random=False))
def test_renaming_nodes_changes_nothing(
    g: Graph, c: Cluster, a: Assumptions, random: Random
) -> None:
    ids = [n.id for n in g.nodes]
    new = dict(zip(ids, random.sample(range(100), len(ids)), strict=True))
    names = {old: f"renamed {number}" for old, number in new.items()}
    nodes = tuple(
        replace(
            n,
            id=names[n.id],
            inputs=tuple(names[u] for u in n.inputs),
            after=tuple(names[u] for u in n.after),
        )
        for n in g.nodes
    )
    renamed = replace(g, nodes=nodes, outputs=tuple(names[u] for u in g.outputs))
    assert value(renamed, c, a) == same(value(g, c, a))


@cases(30)
@given(graphs(max_nodes=5), clusters(), assumptions(), st.data())
def test_the_order_of_devices_changes_nothing(
    g: Graph, c: Cluster, a: Assumptions, data: st.DataObject
) -> None:
    shuffled = replace(c, devices=tuple(data.draw(st.permutations(c.devices))))
    assert value(g, shuffled, a) == same(value(g, c, a))


def no_worse(g: Graph, better: Cluster, c: Cluster, a: Assumptions) -> bool:
    return value(g, better, a) <= value(g, c, a) * (1 + CLOSE) + 1e-9


@cases(30)
@given(graphs(max_nodes=5), clusters(), assumptions(), st.data())
def test_more_memory_is_never_worse(
    g: Graph, c: Cluster, a: Assumptions, data: st.DataObject
) -> None:
    d = data.draw(st.sampled_from(c.devices))
    more = None if d.memory_bytes is None else d.memory_bytes + data.draw(st.integers(0, 50))
    better = replace(
        c, devices=tuple(replace(e, memory_bytes=more) if e is d else e for e in c.devices)
    )
    assert no_worse(g, better, c, a)


@cases(30)
@given(graphs(max_nodes=5), clusters(), assumptions(), st.sampled_from([1.0, 1.5, 10.0]))
def test_faster_links_are_never_worse(g: Graph, c: Cluster, a: Assumptions, factor: float) -> None:
    def faster(wire: Wire) -> Wire:
        return replace(
            wire,
            bandwidth_bytes_per_s=wire.bandwidth_bytes_per_s * factor,
            latency_s=wire.latency_s / factor,
        )

    default = None if c.default_link is None else faster(c.default_link)
    better = replace(c, default_link=default, links=tuple(faster(link) for link in c.links))
    assert no_worse(g, better, c, a)


@cases(30)
@given(graphs(max_nodes=5), clusters(), assumptions(), st.data())
def test_a_faster_device_is_never_worse(
    g: Graph, c: Cluster, a: Assumptions, data: st.DataObject
) -> None:
    d = data.draw(st.sampled_from(c.devices))
    quick = replace(d, slowdown=d.slowdown / data.draw(st.sampled_from([1.0, 1.5, 4.0])))
    better = replace(c, devices=tuple(quick if e is d else e for e in c.devices))
    assert no_worse(g, better, c, a)


@cases(50)
@given(graphs(), clusters(max_devices=4), assumptions())
def test_no_plan_is_worse_than_a_baseline_or_better_than_its_bound(
    g: Graph, c: Cluster, a: Assumptions
) -> None:
    plan = solved(g, c, a)
    if plan is None:
        return
    others = plan.alternatives
    for other in (others.even, others.dynamic, others.best_single_device):
        assert other is None or plan.objective_value <= other
    assert plan.lower_bound <= plan.objective_value


@cases(30)
@given(graphs(), clusters(), assumptions())
def test_a_plan_survives_a_file(
    tmp_path_factory: pytest.TempPathFactory, g: Graph, c: Cluster, a: Assumptions
) -> None:
    plan = solved(g, c, a)
    if plan is not None:
        path = tmp_path_factory.mktemp("plan") / "p.plan.json"
        write(plan, path)
        assert read(path, Plan) == plan


@cases(30)
@given(graphs(), clusters(), assumptions(), st.sampled_from(["even", "dynamic"]))
def test_a_baseline_alone_is_a_valid_plan_with_a_true_bound(
    g: Graph, c: Cluster, a: Assumptions, strategy: str
) -> None:
    try:
        plan = solve(g, c, a, strategy=strategy, enforce_peaks=False).plan
    except (InfeasibleError, NoPlanError):
        return
    assert plan.solver.strategy == strategy
    assert plan.objective_value == getattr(plan.alternatives, strategy)
    assert plan.lower_bound <= best_value(g, c, a) * (1 + CLOSE)
    assert validate(g, c, plan) == ()


def test_a_time_limit_gives_a_plan_with_its_true_gap() -> None:
    g, c = hard_problem()
    began = time.monotonic()
    plan = solve(g, c, time_limit_s=2.0).plan
    assert time.monotonic() - began < 10
    assert plan.solver.status == "feasible"
    assert plan.gap > 0
    assert plan.lower_bound < plan.objective_value
    assert referee_faults(g, c, plan) == []


def test_no_time_at_all_still_gives_the_best_baseline() -> None:
    g, c = hard_problem()
    plan = solve(g, c, time_limit_s=0.0).plan
    others = plan.alternatives
    assert plan.objective_value <= min(others.even, others.dynamic, others.best_single_device)
    assert validate(g, c, plan) == ()


def test_a_wide_gap_stops_early() -> None:
    g, c = hard_problem()
    began = time.monotonic()
    plan = solve(g, c, gap=0.5, time_limit_s=60.0).plan
    assert time.monotonic() - began < 20
    assert 0 < plan.gap <= 0.5


def test_progress_tells_the_best_plan_and_the_bound() -> None:
    g, c = hard_problem()
    told: list[tuple[float, float]] = []
    plan = solve(g, c, time_limit_s=2.0, progress=lambda *figures: told.append(figures)).plan
    values, bounds = zip(*told, strict=True)
    assert min(values) == same(plan.objective_value)
    assert max(bounds) <= plan.objective_value


def test_one_seed_gives_one_plan() -> None:
    g, c = hard_problem(num_nodes=14, num_devices=3)
    first, second = (solve(g, c, seed=3).plan for _ in range(2))
    assert first.stages == second.stages


def test_a_plan_names_its_files() -> None:
    g, c = graph([node("a")]), cpus(1.0)
    plan = solve(g, c, graph_sha256="12", cluster_sha256="34", cluster_name="my.cluster.toml").plan
    assert (plan.graph.name, plan.graph.sha256) == ("test", "12")
    assert (plan.cluster.name, plan.cluster.sha256) == ("my.cluster.toml", "34")
    assert plan.graph.structure == g.structure()


def test_a_type_that_runs_only_the_end_of_the_model_is_used() -> None:
    # a runs on cpu alone; b and c also on gpu, ten times as fast
    both = {"cpu": 10.0, "gpu": 1.0}
    g = graph(
        [
            node("a", forward_s={"cpu": 1.0}),
            node("b", ("a",), forward_s=both),
            node("c", ("b",), forward_s=both),
        ]
    )
    c = Cluster(devices=(Device(name="cpu", type="cpu"), Device(name="gpu", type="gpu")))
    plan = solve(g, c).plan
    assert [(s.device, s.nodes) for s in plan.stages] == [("cpu", ("a",)), ("gpu", ("b", "c"))]


@pytest.mark.filterwarnings("ignore:PULP_CBC_CMD is deprecated")
@pytest.mark.skipif(
    "PULP_CBC_CMD" not in pulp.listSolvers(onlyAvailable=True), reason="PuLP 4 ships no CBC"
)
def test_another_solver_finds_a_plan_of_the_same_value() -> None:
    g, c = hard_problem(num_nodes=8, num_devices=2)
    mine, other = solve(g, c).plan, solve(g, c, solver="PULP_CBC_CMD").plan
    assert other.objective_value == same(mine.objective_value)
    assert other.lower_bound <= mine.objective_value
    assert other.solver.name == "PULP_CBC_CMD"


def test_another_solver_by_name_is_refused_with_its_name() -> None:
    with pytest.raises(Exception, match="no_such_solver"):
        solve(*hard_problem(num_nodes=8, num_devices=2), solver="no_such_solver")


@pytest.mark.parametrize("field", ["time_limit_s", "gap"])
def test_a_negative_limit_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: found -1.0, expected a finite number >= 0"):
        solve(graph([node("a")]), cpus(1.0), **{field: -1.0})


def test_a_file_of_a_plan_is_the_same_each_time(tmp_path: Path) -> None:
    g, c = hard_problem(num_nodes=8, num_devices=2)
    plan = solve(g, c).plan
    write(plan, tmp_path / "a.plan.json")
    write(read(tmp_path / "a.plan.json", Plan), tmp_path / "b.plan.json")
    assert (tmp_path / "a.plan.json").read_bytes() == (tmp_path / "b.plan.json").read_bytes()
