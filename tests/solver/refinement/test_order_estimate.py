"""What stages seem to need, beside what they need: on graphs and cuts of all kinds."""

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions
from skyfx.solver.core.plan import Mode, Objective
from skyfx.solver.costs.peak_memory import peaks
from skyfx.solver.problem.problem import Problem
from skyfx.solver.refinement.cut_moves import Segments, stages_of
from skyfx.solver.refinement.order_estimate import QUEUED, OrderEstimate
from skyfx.solver.refinement.peak_excess import RESERVE
from skyfx.solver.refinement.segment_runs import SegmentRuns
from tests.support.planning_instances import cpus, graph, graphs, node
from tests.support.tiers import cases

MODES: tuple[Mode, ...] = get_args(Mode)
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
TIGHT = 1.0
"""Bytes of each device: what is needed above this is what is estimated."""


@st.composite
def cut_problems(draw: st.DrawFn, *, keeps: bool = False) -> tuple[Problem, Segments]:
    """A problem whose nodes may say what each keeps, and cuts between its units."""
    drawn = draw(graphs(6))
    times = [{} if x.is_input else {"cpu": sum(x.forward_s.values())} for x in drawn.nodes]
    g = graph(
        [replace(x, forward_s=t, backward_s=t) for x, t in zip(drawn.nodes, times, strict=True)]
    )
    if keeps:
        names = [() if x.is_input else (*x.inputs, x.id, "") for x in g.nodes]
        kept = [draw(st.sets(st.sampled_from(x))) if x else set() for x in names]
        sizes = [{name: 10.0 * (1 + len(name)) for name in sorted(x)} for x in kept]
        g = graph([replace(x, kept=k) for x, k in zip(g.nodes, sizes, strict=True)], g.outputs)
    mode, objective = draw(st.sampled_from(MODES)), draw(st.sampled_from(OBJECTIVES))
    asked = Assumptions(mode=mode, objective=objective, microbatches=4)
    many = Problem(g, cpus(1.0), asked).num_units
    ends = sorted(draw(st.sets(st.integers(1, many), min_size=1, max_size=3)) | {many})
    devices = tuple(draw(st.permutations(range(len(ends)))))
    c = cpus(*(1.0 + d for d in devices), memory=TIGHT)
    return Problem(g, c, asked), (devices, tuple(ends))


def estimate(problem: Problem, *, enforce_peaks: bool) -> OrderEstimate:
    order, runs = range(problem.num_units), SegmentRuns.none(problem.graph)
    return OrderEstimate(problem, runs, order, enforce_peaks=enforce_peaks)


@cases(60)
@given(cut_problems())
def test_the_objective_and_what_lasts_are_the_cost_models(drawn: tuple[Problem, Segments]) -> None:
    problem, segments = drawn
    cost = problem.cost(stages_of(range(problem.num_units), *segments))
    found = estimate(problem, enforce_peaks=False).of(segments)
    assert found.value == pytest.approx(cost.objective_value, rel=1e-9)
    assert found.latency_s == pytest.approx(cost.latency_s, rel=1e-9)
    over = sum(max(0.0, bytes_ / TIGHT - 1) for bytes_ in cost.memory_bytes)
    assert found.over == pytest.approx(over, rel=1e-9)


@cases(60)
@given(st.one_of(cut_problems(), cut_problems(keeps=True)))
def test_no_peak_is_taken_to_be_lower(drawn: tuple[Problem, Segments]) -> None:
    """Gradients of what comes from the stages before may be counted twice; nothing is left out."""
    problem, segments = drawn
    placement = problem.placement(stages_of(range(problem.num_units), *segments))
    terms = peaks(problem.graph, placement, problem.assumptions)
    live = (min(4, count) for count in range(len(placement), 0, -1))
    at_peak = (x.bytes(count, QUEUED) for x, count in zip(terms, live, strict=True))
    over = sum(max(0.0, bytes_ - TIGHT / (1 + RESERVE)) for bytes_ in at_peak)
    assert estimate(problem, enforce_peaks=True).of(segments).over >= over * (1 - 1e-9)


def test_a_chain_needs_what_it_seems_to() -> None:
    nodes = [node("x", op="input", forward_s={}, output_bytes=10.0)]
    for i in range(6):
        kept = {nodes[-1].id: 10.0, "": 5.0}
        sizes = {"output_bytes": 10.0, "gradient_bytes": 10.0, "workspace_bytes": 3.0}
        nodes.append(node(f"n{i}", (nodes[-1].id,), kept=kept, saved_bytes=15.0, **sizes))
    problem = Problem(graph(nodes), cpus(1.0, 1.0, memory=TIGHT), Assumptions(microbatches=4))
    segments = (0, 1), (4, 7)
    terms = peaks(
        problem.graph, problem.placement(stages_of(range(7), *segments)), problem.assumptions
    )
    over = sum(
        x.bytes(live, QUEUED) - TIGHT / (1 + RESERVE) for x, live in zip(terms, (2, 1), strict=True)
    )
    assert estimate(problem, enforce_peaks=True).of(segments).over == pytest.approx(over, rel=1e-9)


def test_what_was_chosen_is_known_and_makes_the_rest_seem_cheaper() -> None:
    nodes = [node("x", op="input", forward_s={}, output_bytes=10.0)]
    for i in range(12):
        kept = {nodes[-1].id: 10.0, "": 30.0}
        sizes = {"output_bytes": 10.0, "gradient_bytes": 10.0, "backward_s": {"cpu": 2.0}}
        made = node(f"n{i}", (nodes[-1].id,), kept=kept, saved_bytes=40.0, **sizes)
        nodes.append(replace(made, repeatable=True))
    asked = Assumptions(microbatches=4, optimizer_state_ratio=0.0)
    problem = Problem(graph(nodes), cpus(1.0, 1.0, memory=300.0), asked)
    runs = SegmentRuns.of(problem.graph, {"cpu"})
    known = OrderEstimate(problem, runs, range(13), enforce_peaks=False)
    one, other = ((0, 1), (7, 13)), ((0, 1), (8, 13))
    before = known.of(one), known.of(other)
    seemed = before[0].latency_s - problem.cost(stages_of(range(13), *one)).latency_s
    assert seemed > 0
    known.learn(one, [(0.75 * seemed, 0.0), (0.0, 0.0)])
    assert known.of(one).latency_s == pytest.approx(before[0].latency_s - 0.25 * seemed)
    assert known.of(other) == before[1]
    assert known.of(other, hopeful=True).latency_s < before[1].latency_s
