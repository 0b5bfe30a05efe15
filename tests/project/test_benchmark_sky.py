"""Sky Computing's experiment, as far as it needs no root: its splits, metrics and tables."""

import itertools
from pathlib import Path

import pytest
import torch

from benchmarks.common.documents import put
from benchmarks.sky import measured, simulated
from benchmarks.sky.allocation_units import even, parts, thirds
from benchmarks.sky.metrics import figures
from benchmarks.sky.published_code import even_counts, memory_slowdowns, slowdowns
from benchmarks.sky.table import savings, text
from benchmarks.sky.worker import even_plan, plans
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.solver import Assumptions, Cluster, Device, Graph, evaluate, solve, validate
from skyfx.solver.core.cluster import Wire
from skyfx.tracing.capture import capture
from tests.support.planning_instances import cluster, cpus, graph, node

HIDDEN, TOKENS = 1024, 128
PROJECT, MIX = 2 * TOKENS * HIDDEN**2, 2 * TOKENS**2 * HIDDEN
LAYER = {
    **{f"attention.self.{name}": PROJECT for name in ("query", "key", "value")},
    **{"attention.self": 2 * MIX, "attention.output.dense": PROJECT},
    **{"intermediate.dense": 4 * PROJECT, "output.dense": 4 * PROJECT},
}
"""Multiplications and additions of BERT-large, for a sequence of 128 tokens."""


def bert(layers: int) -> Graph:
    """Operators in a line; their seconds are their arithmetic."""
    times = {
        "bert.embeddings": 1e6,
        **{f"bert.encoder.layer.{i}.{name}": x for i in range(layers) for name, x in LAYER.items()},
        "bert.pooler.dense": 2 * HIDDEN**2,
        "classifier": 6 * HIDDEN,
    }
    before = [(), *((name,) for name in times)]
    return graph(
        [
            node(name, inputs, module=name, forward_s={"cpu": time / 1e12})
            for (name, time), inputs in zip(times.items(), before, strict=False)
        ]
    )


def workers(kind: str, num: int) -> Cluster:
    return cpus(*slowdowns(kind, num))


@pytest.mark.parametrize(
    ("kind", "of_even", "of_best"),
    [("real", 1.404, 1.0562), ("whole", 2.022, 1.0717)],
)
def test_the_known_ratios_of_483_thirds_on_63_workers_come_out(
    kind: str, of_even: float, of_best: float
) -> None:
    g, c = thirds(bert(160)), workers(kind, 63)
    ideal = sum(n.forward_s["cpu"] for n in g.nodes) / sum(1 / s for s in slowdowns(kind, 63))
    assert len(set(parts(g))) == 483
    placement = even(g, c)
    assert len(placement) == 63
    cost = evaluate(g, c, placement, Assumptions())
    assert cost.bottleneck_s / ideal == pytest.approx(of_even, abs=1e-3)
    plan = solve(g, c, Assumptions()).plan
    assert plan.objective_value / ideal == pytest.approx(of_best, abs=1e-3)
    assert plan.solver.status == "optimal"


def test_the_slowdowns_are_the_originals() -> None:
    assert slowdowns("whole", 63)[:8] == [4, 6, 4, 7, 7, 3, 7, 2]
    assert [round(x, 4) for x in slowdowns("real", 63)[:4]] == [1.5722, 1.3771, 1.3229, 1.6866]
    assert all(1 <= x < 3 for x in memory_slowdowns(63))


def test_the_first_workers_have_one_part_more() -> None:
    assert [len(span) for span in even_counts(11, 4)] == [3, 3, 3, 2]
    assert even_counts(3, 4) == [range(0, 1), range(1, 2), range(2, 3), range(3, 3)]
    sizes = [len(span) for span in even_counts(483, 63)]
    assert (sizes.count(8), sizes.count(7)) == (42, 21)


def test_a_captured_bert_falls_into_three_parts_a_layer_and_three_more() -> None:
    with torch.device("meta"):
        model = simulated.bert(2)
    captured = capture(model, {"input_ids": torch.zeros(1, 8, dtype=torch.long, device="meta")})
    assert [part for part, _ in itertools.groupby(parts(to_planner_graph(captured)))] == [
        "embeddings",
        *(
            f"layer {i}, {third}"
            for i in range(2)
            for third in ("attention", "intermediate", "output")
        ),
        "pooler",
        "classifier",
    ]


def tiny() -> Graph:
    """Four nodes of a second forward and two backward, which send 2 bytes each way."""
    return graph(
        [
            node(
                f"n{i}",
                (f"n{i - 1}",) if i else (),
                backward_s={"cpu": 2.0},
                output_bytes=2.0,
                gradient_bytes=2.0,
                saved_bytes=1.0,
            )
            for i in range(4)
        ]
    )


HALVES = [("d0", ["n0", "n1"]), ("d1", ["n2", "n3"])]
FOUR = Assumptions(microbatches=4, overlap="full", optimizer_state_ratio=0.0)


def test_figures_of_two_workers_are_those_made_by_hand() -> None:
    """Of 6 and 18 s a micro-batch; four of them: 24 + 3 x 18 in a pipeline, 4 x 24 in a row."""
    found = figures(tiny(), cpus(1.0, 3.0), HALVES, FOUR)
    assert found.seconds == {
        "bottleneck": 18.0,
        "step": 78.0,
        "simulated": 78.0,
        "sequential": 96.0,
    }
    assert found.num_stages == 2


def test_moving_counts_once_in_a_row_and_hides_in_a_pipeline() -> None:
    """Each way 0.5 s and a second a byte: 2 bytes of a micro-batch, 8 of the batch."""
    devices = [Device(name=f"d{k}", type="cpu", slowdown=s) for k, s in enumerate((1.0, 3.0))]
    slow = cluster(*devices, default=Wire(bandwidth_bytes_per_s=1.0, latency_s=0.5))
    found = figures(tiny(), slow, HALVES, FOUR)
    assert found.seconds["bottleneck"] == 18.0
    assert found.seconds["step"] == 83.0
    assert found.seconds["sequential"] == 96.0 + 2 * 8.5


def test_memory_is_the_pipelines_and_that_of_the_whole_batch() -> None:
    """The last worker keeps one micro-batch of 2 bytes in a pipeline, else all four of them."""
    devices = [Device(name=f"d{k}", type="cpu", memory_bytes=m) for k, m in enumerate((9.0, 2.0))]
    found = figures(tiny(), cluster(*devices), HALVES, FOUR)
    assert (found.fits, found.fits_whole) == (True, False)


def test_the_table_names_what_is_saved_and_what_no_split_saves() -> None:
    g = bert(3)
    rows = list(simulated.rows(g, 3, planning_s=0.2))
    ideals = {kind: simulated.ideals(g, kind, 3) for kind in ("real", "whole")}
    document = text(rows, ideals, (3, 3))
    assert "3 layers, 3 workers." in document
    assert "Nearest to 55.0 %: " in document
    table = savings(rows).splitlines()
    assert len(table) == 2 + 2 * 4 * 4
    sequential = [line.split(" | ") for line in table if "| real | no links | sequential" in line]
    # All of it on the fastest worker: 1.3229 of 1.5722, 1.3771, 1.3229, a third of the parts each.
    work, even_s = 0.0, 0.0
    for (name, ids), slow in zip(even(g, workers("real", 3)), slowdowns("real", 3), strict=True):
        part = sum(n.forward_s["cpu"] for n in g.nodes if n.id in set(ids))
        work, even_s = work + part, even_s + slow * part
        assert name.startswith("d")
    saved = 100 * (1 - work * min(slowdowns("real", 3)) / even_s)
    assert sequential[0][4:] == [f"{saved:.1f}", f"{saved:.1f}", f"{saved:.1f} |"]


def test_the_plans_of_real_runs_hold_and_skyfx_s_are_predicted_best() -> None:
    g = bert(4)
    c = cluster(
        *cpus(4.0, 6.0, 4.0, 7.0).devices, default=Wire(bandwidth_bytes_per_s=1e9, latency_s=0)
    )
    made, predicted = plans(g, c)
    for name in ("even", "dynamic", "optimal", "tapered"):
        validate(thirds(g) if name == "even" else g, c, made[name])
    assert predicted["tapered"] <= predicted["optimal"]
    assert predicted["optimal"] == min(predicted[name] for name in predicted if name != "tapered")
    assert predicted["original"] > 2 * predicted["even"]
    assert made["original"].assumptions.microbatches == 1
    counts = [
        len({parts(g)[i] for i, n in enumerate(g.nodes) if n.id in set(stage.nodes)})
        for stage in even_plan(g, c).stages
    ]
    assert counts == [4, 4, 4, 3]


def test_hosts_have_shares_by_the_originals_slowdowns() -> None:
    made = measured.hosts("whole", 4)
    assert [round(host.share, 3) for host in made] == [0.371, 0.247, 0.371, 0.212]
    assert [host.mbit for host in made] == [636, 726, 756, 593]


def test_a_section_is_written_between_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    path.write_text("# X\n\n## A\n\nold\n\n### A1\n\n## B\n\nkept\n")
    put(path, "## A", "new\n\n### A2\n")
    assert path.read_text() == "# X\n\n## A\n\nnew\n\n### A2\n\n## B\n\nkept\n"
    put(path, "## B", "last")
    assert path.read_text() == "# X\n\n## A\n\nnew\n\n### A2\n\n## B\n\nlast\n"
