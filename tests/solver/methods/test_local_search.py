"""Plans near a known one: never worse, and the kernel's sums are those of the cost model."""

import gzip
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from benchmarks.planner.branching_graphs import inception, on_eight
from benchmarks.planner.instances import layered
from skyfx.solver import Assumptions, Cluster, Graph, read
from skyfx.solver.methods.heuristics import baselines
from skyfx.solver.methods.heuristics.local_search import (
    _plan,
    _tables,
)
from skyfx.solver.methods.heuristics.local_search_kernel import shift, totals
from skyfx.solver.methods.method import Candidate
from skyfx.solver.problem.problem import Problem
from tests.support import ROOT
from tests.support.method_runs import updates
from tests.support.planning_instances import all_plans, assumptions, clusters, graphs
from tests.support.tiers import cases

CAPTURED = ROOT / "benchmarks" / "planner" / "data" / "captured"


@cases(25)
@given(graphs(), clusters(), assumptions())
def test_it_never_beats_the_best_plan(g: Graph, c: Cluster, a: Assumptions) -> None:
    a = replace(a, communication="relay", objective="throughput")
    problem = Problem(g, c, a)
    known = Candidate.of(problem, baselines.even(problem))
    if known is None:
        return
    best = min(cost.objective_value for _, cost in all_plans(g, c, a))
    for answer in updates("local search", problem, known):
        found = Candidate.of(problem, answer.stages)
        if found is not None:
            assert best * (1 - 1e-9) <= found.value < known.value


@pytest.mark.parametrize("overlap", ["none", "full"])
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_after_many_moves_the_sums_are_those_of_the_cost_model(mode: str, overlap: str) -> None:
    g, c = layered(seed=2, num_nodes=120, num_devices=6)
    g = replace(g, nodes=tuple(replace(n, op="input" if not n.inputs else n.op) for n in g.nodes))
    problem = Problem(g, c, Assumptions(mode=mode, overlap=overlap))
    plan = Candidate.of(problem, baselines.even(problem))
    assert plan is not None
    devices, stage_of = _plan(problem, plan)
    tables = _tables(problem)
    for heat in (1.0, 1e-4):  # anything goes, then only what is better
        assert shift(devices, stage_of, heat, 3000, 1, tables) > 20
        stages = [(int(d), np.flatnonzero(stage_of == k).tolist()) for k, d in enumerate(devices)]
        cost = problem.cost(stages)
        compute, _, crossing = totals(devices, stage_of, tables)
        assert compute == pytest.approx(cost.compute_s)
        for b, (d, e) in enumerate(pairwise(devices)):
            there, back = tables.wires[:, d, e], tables.wires[:, e, d]
            moving = there[1] * crossing[0, b] + back[1] * crossing[1, b]
            moving += there[0] * (crossing[2, b] > 0) + back[0] * (crossing[3, b] > 0)
            assert moving == pytest.approx(cost.send_s[b])
    assert cost.bottleneck_s < plan.value


def test_what_stands_beside_the_main_line_is_placed_better() -> None:
    g, c = on_eight(inception(0), read(CAPTURED / "eight.cluster.json", Cluster))
    problem = Problem(g, c, Assumptions())
    known = Candidate.of(problem, baselines.dynamic(problem))
    assert known is not None
    answers = list(updates("local search", problem, known))
    best = min(problem.cost(a.stages).objective_value for a in answers if a.stages)
    assert best < 0.95 * known.value


@pytest.mark.slow
def test_other_orders_of_devices_are_tried(tmp_path: Path) -> None:
    swin = tmp_path / "swin.json"
    swin.write_bytes(gzip.decompress((CAPTURED / "swin.inference.graph.json.gz").read_bytes()))
    g, c = read(swin, Graph), read(CAPTURED / "eight.cluster.json", Cluster)
    problem = Problem(g, c, Assumptions(mode="inference"))
    for answer in updates("interval label dp", problem):
        known = Candidate.of(problem, answer.stages)
    assert known is not None
    answers = updates("restarted local search", problem, known)
    found = [Candidate.of(problem, a.stages) for a in answers]
    best = min((f for f in found if f is not None), key=lambda f: f.value)
    assert best.value < 0.98 * known.value
    assert problem.cluster.devices[best.stages[0][0]].type == "cpu"  # masks, before all else
