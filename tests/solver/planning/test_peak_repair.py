"""Every door to the planner holds plans to their peaks, and a switch turns that off."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph, Plan, read, solve, validate, write
from skyfx.solver.core.plan import Schedule
from skyfx.solver.costs.cost_model import by_device
from skyfx.solver.errors import InfeasibleError, NoPlanError
from tests.support.cli_runner import Run
from tests.support.planning_instances import (
    assumptions,
    clusters,
    cpus,
    graph,
    graphs,
    node,
)
from tests.support.tiers import cases

VALUE = {"output_bytes": 100.0, "gradient_bytes": 100.0, "backward_s": {"cpu": 1.0}}
ASKED = Assumptions(microbatches=1, overlap="full")


def halves() -> Graph:
    """Four equal nodes. The last stage has the loss, so its peak is the highest."""
    nodes = [node("a", saved_bytes=50.0, **VALUE)]
    nodes += [node(n, (m,), saved_bytes=50.0, **VALUE) for m, n in ("ab", "bc", "cd")]
    return graph(nodes)


def peak(plan: Plan) -> float:
    """The most that a device needs at the peaks of its stages."""
    names = [stage.device for stage in plan.stages]
    return max(by_device(names, [stage.peak_bytes for stage in plan.stages]).values())


@cases(60)
@given(
    graphs(),
    clusters(),
    assumptions(),
    st.sampled_from(["1f1b", "gpipe", "generated", "interleaved"]),
    st.floats(0.4, 1.1),
)
def test_every_plan_fits_at_its_peaks(
    g: Graph, c: Cluster, a: Assumptions, schedule: Schedule, part: float
) -> None:
    a = replace(a, communication="relay", schedule=schedule)
    unlimited = replace(c, devices=tuple(replace(d, memory_bytes=None) for d in c.devices))
    try:
        limit = part * 1.1 * peak(solve(g, unlimited, a).plan)
        limited = replace(c, devices=tuple(replace(d, memory_bytes=limit) for d in c.devices))
        plan = solve(g, limited, a).plan
    except (InfeasibleError, NoPlanError):
        return
    if any(n.saved_bytes or n.gradient_bytes or n.workspace_bytes for n in g.nodes):
        assert peak(plan) <= limit / 1.1 * (1 + 1e-9)
    assert validate(g, limited, plan) == ()


@cases(30)
@given(graphs(), clusters(), assumptions(), st.floats(0.4, 1.1))
def test_no_plan_is_worse_than_a_device_alone_that_fits(
    g: Graph, c: Cluster, a: Assumptions, part: float
) -> None:
    a = replace(a, communication="relay", pins=())
    unlimited = replace(c, devices=tuple(replace(d, memory_bytes=None) for d in c.devices))
    try:
        limit = part * 1.1 * peak(solve(g, unlimited, a).plan)
    except InfeasibleError:  # no device has the type that a node was measured on
        return
    c = replace(c, devices=tuple(replace(d, memory_bytes=limit) for d in c.devices))
    for device in c.devices:
        try:
            alone = solve(g, replace(c, devices=(device,), links=()), a).plan
        except (InfeasibleError, NoPlanError):
            continue
        value = solve(g, c, a).plan.objective_value
        assert value <= alone.objective_value * (1 + 1e-9)


def test_the_error_names_both_numbers_and_the_cure() -> None:
    g, c = halves(), cpus(1.0, 1.0, memory=310.0)
    with pytest.raises(NoPlanError) as told:
        solve(g, c, ASKED)
    assert str(told.value) == (
        "no plan was found, though one may exist, that fits at its peak: the stage on 'd1' needs "
        "990 B for moments (a tenth of it in reserve), its limit is 310 B; give it more "
        "memory_bytes, or make micro-batches smaller (num_microbatches, now 1)"
    )
    several = replace(g, microbatch_size=4)
    with pytest.raises(NoPlanError) as told:
        solve(several, c, ASKED)
    assert "make micro-batches smaller (num_microbatches=4 fits, each of 1 sample)" in str(
        told.value
    )
    with pytest.raises(NoPlanError, match="its limit is 310 B; the even split is not changed, use"):
        solve(g, c, ASKED, strategy="even")


def test_without_the_switch_peaks_do_not_count() -> None:
    g, c = halves(), cpus(1.0, 1.0, memory=310.0)
    plan = solve(g, c, ASKED, enforce_peaks=False).plan
    assert peak(plan) > 310.0
    assert max(stage.memory_bytes for stage in plan.stages) <= 310.0
    assert [len(stage.nodes) for stage in plan.stages] == [2, 2]


def test_a_graph_that_says_no_sizes_is_planned_by_what_lasts() -> None:
    """As graph files of other planners, with outputs and parameters alone."""
    nodes = [node("a", output_bytes=100.0, parameter_bytes=10.0)]
    nodes += [node(n, (m,), output_bytes=100.0, parameter_bytes=10.0) for m, n in ("ab", "bc")]
    g, c = graph(nodes), cpus(1.0, 1.0, memory=90.0)
    plan = solve(g, c, ASKED).plan
    assert 1.1 * peak(plan) > 90.0
    by_formula = solve(g, c, ASKED, enforce_peaks=False).plan
    assert plan.stages == by_formula.stages
    assert (plan.objective_value, plan.lower_bound) == (
        by_formula.objective_value,
        by_formula.lower_bound,
    )


OPTIONS = ("--num-microbatches", "1", "--overlap", "full")


def test_the_commands_hold_plans_to_their_peaks(skyfx: Run, folder: Path) -> None:
    write(halves(), folder / "h.graph.json")
    write(cpus(1.0, 1.0, memory=310.0), folder / "small.cluster.json")
    write(cpus(1.0, 1.0, memory=1000.0), folder / "large.cluster.json")
    small = ("solve", "h.graph.json", "small.cluster.json", "-q", *OPTIONS)
    refused = skyfx(*small, "-o", "p.plan.json")
    assert refused.returncode == 4
    assert "fits at its peak: the stage on 'd1' needs 990 B" in refused.stderr
    assert not (folder / "p.plan.json").exists()
    assert skyfx(*small, "-o", "p.plan.json", "--ignore-peaks").returncode == 0
    assert peak(read(folder / "p.plan.json", Plan)) > 310.0

    large = ("solve", "h.graph.json", "large.cluster.json", "-q", *OPTIONS)
    assert skyfx(*large, "-o", "large.plan.json").returncode == 0
    what_if = ("--what-if", "memory d1 x0.3", "--replan", "--json")
    for options, replanned in ((), [["d0", 4]]), (("--ignore-peaks",), [["d0", 2], ["d1", 2]]):
        done = skyfx("simulate", "large.plan.json", *what_if, *options)
        assert done.returncode == 0, done.stderr
        (change,) = json.loads(done.stdout)["what_if"]
        assert change["replanned"] == replanned
