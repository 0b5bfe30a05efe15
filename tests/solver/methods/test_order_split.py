"""Cuts for an order of the devices, slices of long models, and what memory costs at the least."""

import math
from dataclasses import replace
from itertools import permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planner.instances import unlike_chain
from skyfx.solver import Assumptions, Cluster, Device, Graph, Link, solve, validate
from skyfx.solver.methods.heuristics.order_split import OrderSplitter
from skyfx.solver.methods.method import Candidate
from skyfx.solver.problem.coarsening import coarsen, refine, thin_cuts
from skyfx.solver.problem.linear_extensions import depth_first_extension
from skyfx.solver.problem.problem import Problem
from tests.support.independent_validator import referee_faults
from tests.support.method_runs import updates
from tests.support.planning_instances import (
    all_plans,
    assumptions,
    chains,
    clusters,
    graph,
    graphs,
    node,
)
from tests.support.tiers import cases

KINDS = (("a", "slow"), ("b", "cpu"), ("c", "fast"))


@cases(150)
@given(chains(), clusters(), assumptions(), st.randoms(use_true_random=False))
def test_an_order_of_a_chain_is_cut_as_well_as_can_be(
    g: Graph, c: Cluster, a: Assumptions, random: Random
) -> None:
    a = replace(a, communication="relay", overlap="full", objective="latency")
    plans = [cost for _, cost in all_plans(g, c, a)]
    if not plans:
        return
    problem = Problem(g, c, a)
    within = random.choice([math.inf, *(cost.bottleneck_s for cost in plans)])
    best = min(cost.latency_s for cost in plans if cost.bottleneck_s <= within)
    cutter = OrderSplitter(problem)
    found = [cutter.plan(order, within) for order in permutations(range(problem.num_devices))]
    fit = [one for stages in found if (one := Candidate.of(problem, stages)) is not None]
    kept = [one.cost.latency_s for one in fit if one.cost.bottleneck_s <= within * (1 + 1e-6)]
    assert all(latency_s >= best * (1 - 1e-6) for latency_s in kept)
    if not problem.memory_binds:
        assert min(kept) == pytest.approx(best)


def test_a_device_may_only_relay() -> None:
    """The first and the last device have one unit each; the link between them is slow."""
    g = graph([node("a", forward_s={"slow": 1.0}), node("b", ("a",), forward_s={"fast": 1.0})])
    c = Cluster(
        devices=tuple(Device(name=n, type=t) for n, t in KINDS),
        links=(Link(source="a", target="c", bandwidth_bytes_per_s=1.0, latency_s=9.0),),
    )
    a = Assumptions(mode="inference", objective="latency", overlap="full")
    assert OrderSplitter(Problem(g, c, a)).plan([0, 1, 2]) == [(0, [0]), (1, []), (2, [1])]


@cases(60)
@given(graphs(), clusters(), assumptions())
def test_no_plan_beats_the_prices_of_memory(g: Graph, c: Cluster, a: Assumptions) -> None:
    a = replace(a, objective="latency")
    best = min((cost.objective_value for _, cost in all_plans(g, c, a)), default=None)
    if best is None:
        return
    problem = Problem(g, c, a)
    for answer in updates("memory dual bound", problem):
        if answer.bound is not None:
            assert answer.bound.value <= best * (1 + 1e-9)


def test_what_does_not_fit_the_fastest_device_bounds_the_latency() -> None:
    """Eight units of 1 s and 10 bytes; the fast one holds five, the other takes three times as
    long for the rest."""
    units = [node(f"n{i}", (f"n{i - 1}",) if i else (), parameter_bytes=10.0) for i in range(8)]
    devices = (
        Device(name="fast", type="cpu", memory_bytes=55.0),
        Device(name="slow", type="cpu", slowdown=3.0),
    )
    asked = Assumptions(mode="inference", objective="latency", microbatches=1)
    problem = Problem(graph(units), Cluster(devices=devices), asked)
    (answer,) = updates("memory dual bound", problem)
    assert answer.bound is not None
    assert answer.bound.value == pytest.approx(5.5 + 2.5 * 3)


def test_many_unlike_devices_with_little_memory_are_filled_in_the_order_of_their_speeds() -> None:
    """Of 16 devices the four fastest have room for all, 50 units each."""
    units = [node(f"n{i}", (f"n{i - 1}",) if i else (), parameter_bytes=1.0) for i in range(200)]
    devices = tuple(
        Device(name=f"d{k}", type="cpu", slowdown=1 + (k * 7 % 16) / 4, memory_bytes=50.0 + k / 32)
        for k in range(16)
    )
    asked = Assumptions(mode="inference", objective="latency", microbatches=1)
    g, c = graph([replace(unit, output_bytes=0.0) for unit in units]), Cluster(devices=devices)
    plan = solve(g, c, asked, time_limit_s=120.0, gap=0.001).plan
    assert plan.objective_value == pytest.approx(50 * (1 + 1.25 + 1.5 + 1.75))
    assert plan.lower_bound == pytest.approx(plan.objective_value, rel=0.001)
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []


def test_slices_of_a_long_model_cost_what_their_units_cost() -> None:
    g, c = unlike_chain(0, layers=90, num_devices=12)
    problem = Problem(g, c, Assumptions())
    coarse = coarsen(problem)
    assert coarse.graph is problem.graph
    assert problem.num_units > 1000
    assert 600 < coarse.num_units <= 641
    half = coarse.num_units // 2
    stages = [(3, range(half)), (5, range(half, coarse.num_units))]
    fine = refine(problem, coarse, stages)
    assert [d for d, _ in fine] == [3, 5]
    assert sorted(i for _, part in fine for i in part) == list(range(problem.num_units))
    cost, of_slices = problem.cost(fine), coarse.cost(stages)
    assert cost.time_s == pytest.approx(of_slices.time_s)
    assert cost.memory_bytes == pytest.approx(of_slices.memory_bytes)


def test_a_short_model_has_no_slices() -> None:
    g, c = unlike_chain(0, layers=10, num_devices=3)
    assert [update.stages for update in updates("slices", Problem(g, c, Assumptions()))] == [None]


def test_slices_are_cut_where_little_is_alive() -> None:
    """Every third unit hands on 1 byte, the others 100."""
    units = [
        node(f"n{i}", (f"n{i - 1}",) if i else (), output_bytes=1.0 if i % 3 == 2 else 100.0)
        for i in range(30)
    ]
    problem = Problem(graph(units), Cluster(devices=(Device(name="d", type="cpu"),)), Assumptions())
    cuts = thin_cuts(problem, depth_first_extension(problem), 10)
    assert cuts == [0, 1, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
    assert thin_cuts(problem, depth_first_extension(problem), 30) == list(range(31))


@pytest.mark.parametrize("objective", ["throughput", "step", "latency"])
def test_a_long_model_on_many_unlike_devices_gets_more_than_the_heuristic(objective: str) -> None:
    g, c = unlike_chain(1, layers=60, num_devices=30)
    c = replace(c, devices=tuple(replace(d, memory_bytes=None) for d in c.devices))
    asked = Assumptions(objective=objective, microbatches=8, overlap="full")
    gap = 0.02 if objective == "latency" else 0.2
    plan = solve(g, c, asked, time_limit_s=120.0, gap=gap).plan
    assert validate(g, c, plan) == ()
    assert referee_faults(g, c, plan) == []
    assert plan.alternatives.dynamic is not None
    assert plan.objective_value < 0.9 * plan.alternatives.dynamic


def test_few_devices_are_left_to_the_exact_methods() -> None:
    g, c = unlike_chain(0, layers=2, num_devices=4)
    problem = Problem(g, c, Assumptions())
    answers = list(updates("order-split", problem))
    assert [answer.remark for answer in answers] == ["only for more than 20000 states of devices"]
