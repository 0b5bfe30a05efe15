"""Plans that recompute: against every plan with every choice of segments, on small problems."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyfx.solver import Assumptions, Cluster, Graph, Plan, evaluate, solve
from skyfx.solver.analysis.explain import explain_plan
from skyfx.solver.analysis.html_report import DrawnStep, page
from skyfx.solver.analysis.plan_diff import Difference
from skyfx.solver.analysis.recheck import recheck
from skyfx.solver.analysis.scenarios import predict_step_s, simulate_plan
from skyfx.solver.analysis.validation import validate
from skyfx.solver.costs.peak_memory import peak_bytes
from skyfx.solver.costs.recomputation import segment_faults, with_recomputation
from skyfx.solver.errors import InfeasibleError, NoPlanError
from skyfx.solver.planning.recomputation import bounded_problem
from skyfx.solver.problem.problem import Problem
from tests.support.planning_instances import all_plans, clusters, cpus, graph, graphs, node
from tests.support.tiers import cases

Segments = list[tuple[str, ...]]
ASKED = Assumptions(microbatches=4, optimizer_state_ratio=0.0, recompute="auto")
CHAIN = {"output_bytes": 10.0, "gradient_bytes": 10.0, "backward_s": {"cpu": 2.0}}


@st.composite
def keeping_graphs(draw: st.DrawFn, max_nodes: int = 4) -> Graph:
    """Graphs whose nodes say what they keep; some may not run again."""
    nodes, seen = [], set[str]()
    for n in draw(graphs(max_nodes)).nodes:
        readable = () if n.is_input else (*n.inputs, n.id, "")
        names = draw(st.sets(st.sampled_from(readable))) if readable else set[str]()
        kept = {name: 10.0 * (1 + len(name)) for name in sorted(names)}
        new = kept.keys() - seen
        seen |= new - {""}
        saved = sum(kept[name] for name in new)
        again = not n.is_input and draw(st.integers(0, 3)) > 0
        nodes.append(replace(n, kept=kept, saved_bytes=saved, repeatable=again, workspace_bytes=0))
    return graph(nodes)


def test_a_chain_that_keeps_too_much_recomputes_as_little_as_it_has_to() -> None:
    g, free = chain(8), cpus(1.0, 1.0)
    most = solve(g, free, ASKED).plan
    assert most.segments() == []
    tight = cpus(1.0, 1.0, memory=0.8 * 1.1 * max(stage.peak_bytes for stage in most.stages))
    with pytest.raises((InfeasibleError, NoPlanError)):
        solve(g, tight, replace(ASKED, recompute="never"))
    found = solve(g, tight, ASKED).plan
    assert validate(g, tight, found) == ()
    assert found.segments()
    assert most.objective_value < found.objective_value <= 1.34 * most.objective_value
    assert found.lower_bound <= found.objective_value
    for k, stage in enumerate(found.stages):  # none of them can be left out
        for segment in stage.recompute:
            fewer = replace(stage, recompute=tuple(x for x in stage.recompute if x != segment))
            stages = (*found.stages[:k], fewer, *found.stages[k + 1 :])
            assert not fits(g, tight, replace(found, stages=stages))


def test_where_memory_suffices_the_plan_is_the_same() -> None:
    g, c = chain(8), cpus(1.0, 1.0, memory=1e6)
    plans = [solve(g, c, replace(ASKED, recompute=how)).plan for how in ("auto", "never")]  # type: ignore[arg-type]
    assert plans[0].stages == plans[1].stages


def test_always_recomputes_what_gives_memory_back() -> None:
    g, c = chain(8), cpus(1.0, 1.0)
    found = solve(g, c, replace(ASKED, recompute="always")).plan
    assert validate(g, c, found) == ()
    usual = solve(g, c, ASKED).plan
    assert sum(s.memory_bytes for s in found.stages) < sum(s.memory_bytes for s in usual.stages)
    assert all(stage.recompute for stage in found.stages)
    with pytest.raises(ValueError, match="does not say what its nodes keep"):
        solve(graph([node("a")]), c, replace(ASKED, recompute="always"))


@pytest.mark.parametrize("schedule", ["gpipe", "generated", "tapered", "interleaved"])
def test_every_schedule_recomputes(schedule: str) -> None:
    g, asked = chain(12), replace(ASKED, schedule=schedule)
    usual = replace(ASKED, schedule="gpipe" if schedule == "gpipe" else "1f1b")
    free = solve(g, cpus(1.0, 1.0), usual).plan
    limit = 0.8 * max(1.1 * stage.peak_bytes for stage in free.stages)
    limit *= 1 + (schedule == "interleaved")  # two stages a device
    tight = cpus(1.0, 1.0, memory=limit)
    found = solve(g, tight, asked).plan
    assert validate(g, tight, found) == ()
    assert found.segments() or schedule == "interleaved"


@cases(12)
@given(keeping_graphs(), clusters(2), st.sampled_from(["1f1b", "gpipe"]), st.floats(0.4, 1.0))
def test_no_choice_of_segments_beats_the_bound(
    g: Graph, c: Cluster, schedule: str, part: float
) -> None:
    asked = replace(ASKED, schedule=schedule)  # type: ignore[arg-type]
    try:
        free = solve(g, unlimited(c), asked, enforce_peaks=False).plan
    except InfeasibleError:
        return
    limit = part * 1.1 * max(stage.peak_bytes for stage in free.stages)
    limited = replace(c, devices=tuple(replace(d, memory_bytes=limit) for d in c.devices))
    best = min(every_value(g, limited, asked), default=None)
    plans, impossible = dict[str, Plan](), set[str]()
    for how in ("never", "auto"):
        try:
            plans[how] = solve(g, limited, replace(asked, recompute=how)).plan  # type: ignore[arg-type]
        except NoPlanError:
            continue  # by annealing none is found at times though there is one
        except InfeasibleError:
            impossible.add(how)
    assert best is None or "auto" not in impossible
    if "never" in plans:
        assert plans["auto"].objective_value <= plans["never"].objective_value * (1 + 1e-9)
    if "auto" not in plans:
        return
    found = plans["auto"]
    assert validate(g, limited, found) == ()
    assert fits(g, limited, found)
    assert best is not None
    assert found.lower_bound <= best * (1 + 1e-6)
    assert found.objective_value >= best * (1 - 1e-6)
    problem = bounded_problem(Problem(g, limited, asked), with_recomputation(g, found.segments()))
    assert recheck(problem, found.lower_bound).verdict != "refuted"


def chain(length: int) -> Graph:
    """Each node keeps what it reads, and all may run again."""
    names = [f"n{i}" for i in range(length)]
    nodes = [node(names[0], op="input", forward_s={}, output_bytes=10.0)]
    for one, other in itertools.pairwise(names):
        kept = {one: 10.0, "": 30.0}
        nodes.append(node(other, (one,), kept=kept, saved_bytes=40.0, repeatable=True, **CHAIN))
    return graph(nodes)


def unlimited(c: Cluster) -> Cluster:
    return replace(c, devices=tuple(replace(d, memory_bytes=None) for d in c.devices))


def fits(g: Graph, c: Cluster, plan: Plan) -> bool:
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    return _fits(with_recomputation(g, plan.segments()), c, placement, plan.assumptions)


def _fits(
    g: Graph, c: Cluster, placement: Sequence[tuple[str, Sequence[str]]], a: Assumptions
) -> bool:
    limits = {device.name: device.memory_bytes or 0.0 for device in c.devices}
    each = zip(
        placement,
        peak_bytes(g, c, placement, a),
        evaluate(g, c, placement, a).memory_bytes,
        strict=True,
    )
    return all(max(1.1 * peak, memory) <= limits[name] for (name, _), peak, memory in each)


def every_value(g: Graph, c: Cluster, a: Assumptions) -> Iterator[float]:
    """The objective of every plan that fits, with every choice of segments."""
    for placement, _ in all_plans(g, unlimited(c), a):
        each = [list(choices(g, ids)) for _, ids in placement]
        for chosen in itertools.product(*each):
            again = with_recomputation(g, [x for segments in chosen for x in segments])
            if _fits(again, c, placement, a):
                yield evaluate(again, c, placement, a).objective_value


def choices(g: Graph, stage: Sequence[str]) -> Iterator[Segments]:
    """Every choice of disjoint segments of a stage."""

    def extend(begin: int) -> Iterator[Segments]:
        if begin == len(stage):
            yield []
            return
        yield from extend(begin + 1)
        for end in range(begin + 1, len(stage) + 1):
            segment = tuple(stage[begin:end])
            if not any(segment_faults(g, stage, [segment])):
                yield from ([segment, *rest] for rest in extend(end))

    yield from extend(0)


def test_every_view_says_what_is_recomputed() -> None:
    g, c = chain(8), cpus(1.0, 1.0)
    usual = solve(g, c, ASKED).plan
    again = solve(g, c, replace(ASKED, recompute="always")).plan
    assert "recomputed in backward: stage 0" in str(again)
    assert "recomputed" not in str(usual)
    sentences = [*explain_plan(g, c, again, lambda graph, cluster: again)]
    assert any("nodes again in backward" in x and "are not kept" in x for x in sentences)
    steps = [DrawnStep("predicted", simulate_plan(g, c, again).done)]
    assert "recomputing" in page(g, c, again, steps, sentences, [])
    assert any("recomputed)" in line for line in Difference.of(usual, again).lines())
    assert predict_step_s(g, c, again) > predict_step_s(g, c, usual)
