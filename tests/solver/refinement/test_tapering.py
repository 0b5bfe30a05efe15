"""Stages made for their schedule: no schedule undercuts their bound, and steps are shorter."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Device, Graph, Link, solve, validate
from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.simulator import simulate
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.cut_moves import segments_of
from skyfx.solver.refinement.in_flight import generate
from skyfx.solver.refinement.tapering import StepBound, tapered
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
from tests.support.tiers import cases

ASKED = Assumptions(microbatches=8, overlap="full", schedule="tapered")


def chain(num: int, **fields: object) -> Graph:
    """Equal operators, a backward twice its forward."""
    given_ = {"forward_s": {"cpu": 1.0}, "backward_s": {"cpu": 2.0}} | fields
    return graph([node(f"n{i}", (f"n{i - 1}",) if i else (), **given_) for i in range(num)])


@cases(150)
@given(graphs(), clusters(), assumptions(), st.randoms(use_true_random=False))
def test_no_schedule_undercuts_what_its_stages_need(
    g: Graph, c: Cluster, a: Assumptions, random: Random
) -> None:
    a = replace(a, mode="training", communication="relay", schedule="tapered")
    plans = [placement for placement, _ in all_plans(g, c, a) if all(ids for _, ids in placement)]
    if not plans:
        return
    problem, placement = Problem(g, c, a), random.choice(plans)
    number = {device.name: d for d, device in enumerate(c.devices)}
    stages = [(number[d], sorted({problem.unit_of[v] for v in ids})) for d, ids in placement]
    order, segments = segments_of(stages)
    least_s = StepBound(problem, order).step_s(segments)
    placement = problem.placement(stages)
    counts = [a.microbatches] * len(stages)
    for live in (counts, [random.randint(1, a.microbatches)] * len(stages), None):
        step_s = simulate(g, c, placement, replace(a, schedule="1f1b"), live).step_s
        assert step_s >= least_s * (1 - 1e-9)
    pace = ActionTimes.of(g, c, placement, a)
    found = generate(pace, a.microbatches, lambda live, timeline: True)
    assert found.step_s >= least_s * (1 - 1e-9)


def test_latency_holds_no_link() -> None:
    """A gradient of 1 byte takes 2 s and arrives 1 s later; the next one leaves meanwhile."""
    wire = {"bandwidth_bytes_per_s": 0.5, "latency_s": 1.0}
    g = chain(2, forward_s={}, backward_s={}, output_bytes=0.0, gradient_bytes=1.0)
    c = cluster(*cpus(1.0, 1.0).devices, links=(Link(source="d1", target="d0", **wire),))
    a = replace(ASKED, microbatches=2)
    stages = [(0, [0]), (1, [1])]
    order, segments = segments_of(stages)
    problem = Problem(g, c, a)
    assert StepBound(problem, order).step_s(segments) == 5.0
    placement = problem.placement(stages)
    assert simulate(g, c, placement, replace(a, schedule="1f1b")).step_s == 5.0


def test_equal_devices_get_less_to_do_the_later_they_come() -> None:
    """80 operators of 3 s on four devices: 20 each make a step of 660 s."""
    g, c = chain(80), cpus(1.0, 1.0, 1.0, 1.0)
    equal = solve(g, c, replace(ASKED, schedule="generated")).plan
    plan = solve(g, c, ASKED).plan
    assert [len(stage.nodes) for stage in equal.stages] == [20, 20, 20, 20]
    assert equal.simulated_s == 3 * 60 + 8 * 60
    counts = [len(stage.nodes) for stage in plan.stages]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert plan.simulated_s < 0.96 * equal.simulated_s
    assert plan.alternatives.simulated_1f1b_s == 660.0
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []


def test_a_plan_that_cannot_be_shortened_stays_as_it_is() -> None:
    g, c = chain(1), cpus(1.0, 2.0)
    problem = Problem(g, c, ASKED)
    assert tapered(problem, [(0, [0])]) == [(0, [0])]
    plan = solve(g, c, ASKED).plan
    assert [stage.device for stage in plan.stages] == ["d0"]
    assert plan.simulated_s == 24.0


def test_a_baseline_keeps_its_stages() -> None:
    plan = solve(chain(80), cpus(1.0, 1.0, 1.0, 1.0), ASKED, strategy="even").plan
    assert [len(stage.nodes) for stage in plan.stages] == [20, 20, 20, 20]


def test_pins_hold_when_stages_change() -> None:
    g, c = chain(40), cpus(1.0, 1.0, 3.0)
    pins = ("n0=d2", "n39!=d0")
    plan = solve(g, c, replace(ASKED, pins=pins)).plan
    where = {name: stage.device for stage in plan.stages for name in stage.nodes}
    assert where["n0"] == "d2"
    assert where["n39"] != "d0"
    assert validate(g, c, plan) == ()


@pytest.mark.parametrize("overlap", ["none", "full"])
def test_a_slow_link_is_reckoned_with(overlap: str) -> None:
    """Handing on an operator's 1 MB takes a second and its gradient's another one."""
    devices = tuple(Device(name=name, type="cpu") for name in "abc")
    links = tuple(
        Link(source=a.name, target=b.name, bandwidth_bytes_per_s=1e6, latency_s=0.0)
        for a in devices
        for b in devices
        if a != b
    )
    g, c = chain(60, output_bytes=1e6, gradient_bytes=1e6), Cluster(devices=devices, links=links)
    asked = replace(ASKED, overlap=overlap)
    plan = solve(g, c, asked).plan
    search_assumptions = solve(g, c, replace(asked, schedule="generated")).plan
    assert plan.simulated_s < search_assumptions.simulated_s
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []


def test_a_device_without_times_for_a_unit_gets_none() -> None:
    g = graph([node("a", forward_s={"fast": 0.0}, backward_s={"fast": 1.0})])
    c = cluster(Device(name="d0", type="fast"), Device(name="d1", type="slow"))
    plan = solve(g, c, Assumptions(schedule="tapered", microbatches=1)).plan
    assert [stage.device for stage in plan.stages] == ["d0"]
    assert validate(g, c, plan) == ()
