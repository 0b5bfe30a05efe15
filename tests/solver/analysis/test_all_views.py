"""Every plan is printed, drawn, explained, simulated and checked, also one with empty stages."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph, Plan, read, solve, validate
from skyfx.solver.analysis.cluster_changes import Change
from skyfx.solver.analysis.explain import explain_plan
from skyfx.solver.analysis.html_report import DrawnStep, page
from skyfx.solver.analysis.plan_diff import Difference
from skyfx.solver.analysis.scenarios import busy_s, scenarios, simulate_plan, spread
from skyfx.solver.core import files
from skyfx.solver.core.chrome_trace import chrome_trace, read_trace
from skyfx.solver.core.plan import SCHEDULES_WITH_COUNTS, Schedule
from skyfx.solver.core.plan_table import COLUMNS
from skyfx.solver.errors import InfeasibleError, NoPlanError
from tests.support.html_reader import HtmlReader
from tests.support.planning_instances import (
    all_plans,
    assumptions,
    chains,
    clusters,
    graphs,
    plan_of,
)
from tests.support.tiers import cases

MSR = Path("benchmarks/planner/data/msr")
Placement = list[tuple[str, list[str]]]


def assert_shown(g: Graph, c: Cluster, plan: Plan, folder: Path) -> None:
    """Draw all views of a plan; each has a row for each stage or device."""
    assert files.decode(files.encode(plan), Plan, "p.plan.json") == plan
    rows = str(plan).splitlines()[2:]
    for k, stage in enumerate(plan.stages):
        assert rows[k].split()[:3] == [str(k), stage.device, str(len(stage.nodes))]
    assert plan._repr_html_().count("<tr>") == 1 + len(plan.stages)
    assert plan._repr_html_().count("<td>") == len(COLUMNS) * len(plan.stages)

    def same(_: Graph, __: Cluster) -> Plan:
        return plan

    sentences = list(explain_plan(g, c, plan, same))
    changes = [Change.of(f"slow {stage.device} x2") for stage in plan.stages]
    found = list(scenarios(g, c, plan, changes, same))
    steps = []
    if plan.assumptions.communication == "relay":
        timeline = simulate_plan(g, c, plan)
        num_actions = plan.assumptions.microbatches * (1 + plan.assumptions.training)
        assert len(timeline.done) == num_actions * len(plan.stages)
        assert list(busy_s(plan, timeline)) == list(dict.fromkeys(s.device for s in plan.stages))
        assert spread(g, c, plan, 0.1, 2, 0)[0] >= 0
        steps = [DrawnStep("predicted", timeline.done)]
        trace = folder / "step.trace.json"
        trace.write_bytes(
            chrome_trace({"predicted": ([s.device for s in plan.stages], timeline.done)})
        )
        read_back = read_trace(trace, plan)
        assert [done.action for done in read_back] == [done.action for done in timeline.done]
    drawn = HtmlReader(page(g, c, plan, steps, sentences, found))
    for k, stage in enumerate(plan.stages):
        assert any(text.startswith(f"{k} {stage.device}") for text in drawn.texts)
    assert not Difference.of(plan, plan).differ
    assert list(Difference.of(plan, replace(plan, stages=plan.stages[:1])).lines())
    assert validate(g, c, plan) == ()


def with_empty_stages(plans: Iterator[tuple[Placement, Any]]) -> list[Placement]:
    """One placement for each set of positions of empty stages."""
    found: dict[tuple[bool, ...], Placement] = {}
    for placement, _ in plans:
        found.setdefault(tuple(not ids for _, ids in placement), placement)
    return list(found.values())


@cases(60)
@given(graphs(4) | chains(4), clusters(), assumptions())
def test_plans_with_empty_stages_are_shown(
    tmp_path_factory: pytest.TempPathFactory, g: Graph, c: Cluster, a: Assumptions
) -> None:
    folder = tmp_path_factory.mktemp("views")
    for placement in with_empty_stages(all_plans(g, c, a)):
        assert_shown(g, c, plan_of(g, c, a, placement), folder)


@cases(40)
@given(graphs(4), clusters(), assumptions(), st.sampled_from(SCHEDULES_WITH_COUNTS), st.data())
def test_plans_that_bring_counts_are_shown(
    tmp_path_factory: pytest.TempPathFactory,
    g: Graph,
    c: Cluster,
    a: Assumptions,
    schedule: Any,
    data: st.DataObject,
) -> None:
    """Of more or fewer micro-batches in flight than 1f1b; a device has two of `interleaved`."""
    folder = tmp_path_factory.mktemp("views")
    c = replace(c, devices=tuple(replace(d, memory_bytes=None) for d in c.devices))
    a = replace(a, mode="training", communication="relay", schedule=schedule)
    for placement in with_empty_stages(all_plans(g, c, a)):
        if schedule == "interleaved" and len(placement) > 1:
            placement = [*placement, *((name, []) for name, _ in placement)]
        counts = data.draw(
            st.lists(
                st.integers(1, a.microbatches), min_size=len(placement), max_size=len(placement)
            )
        )
        live = sorted(counts, reverse=True)
        assert_shown(g, c, plan_of(g, c, a, placement, live), folder)


@cases(30)
@given(graphs(5), clusters(), assumptions(), st.sampled_from(get_args(Schedule)))
def test_plans_of_the_solver_are_shown(
    tmp_path_factory: pytest.TempPathFactory, g: Graph, c: Cluster, a: Assumptions, schedule: Any
) -> None:
    relay = schedule not in SCHEDULES_WITH_COUNTS or a.communication == "relay"
    a = replace(a, schedule=schedule) if relay and a.training else a
    try:
        plan = solve(g, c, a, time_limit_s=2.0).plan
    except (InfeasibleError, NoPlanError, ValueError):
        return
    assert_shown(g, c, plan, tmp_path_factory.mktemp("views"))


@pytest.mark.parametrize("communication", ["relay", "host"])
@pytest.mark.parametrize("name", ["L-bert24", "L-gnmt", "L-resnet50", "O-bert_l-3"])
def test_public_graphs_with_empty_stages_are_shown(
    tmp_path: Path, name: str, communication: Any
) -> None:
    g = read(MSR / f"dnnp-{name}.graph.json", Graph)
    c = read(MSR / f"dnnp-{name}.cluster.json", Cluster)
    devices = [replace(device, memory_bytes=None) for device in c.devices[:4]]
    names = {device.name for device in devices} | {"host"}
    links = [link for link in c.links if {link.source, link.target} <= names]
    c = replace(c, devices=tuple(devices), links=tuple(links))
    a = Assumptions(mode="inference", communication=communication, microbatches=1)
    runs = [d.name for d in devices if all(n.runs_on(d.type, training=False) for n in g.nodes)]
    others = [d.name for d in devices if d.name != runs[0]]
    ids = [node.id for node in g.nodes]
    for position in (0, 1, len(others)):
        order = [*others[:position], runs[0], *others[position:]]
        placement = [(one, ids if one == runs[0] else []) for one in order]
        assert_shown(g, c, plan_of(g, c, a, placement), tmp_path)
