"""The published experiment by the cost model: a deep BERT on many workers, all metrics.

The model is captured and measured without its weights, on this machine's processor.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers

import skyfx
from benchmarks.sky import published_code
from benchmarks.sky.allocation_units import even, thirds
from benchmarks.sky.metrics import PIPELINED, SEQUENTIAL, Figures, figures, whole
from skyfx.measurement.measure import measure
from skyfx.runtime.device import LocalDevice
from skyfx.solver import Cluster, Device, Graph, Link, Plan, solve
from skyfx.solver.costs.cost_model import Placement
from skyfx.solver.errors import NoPlanError
from skyfx.tracing.capture import capture

__all__: list[str] = ["CUTS", "SETTINGS", "Row", "bert", "ideals", "measured", "rows"]

GIB = 2.0**30
MEMORY_GIB, LATENCY_S = 16.0, 1e-3
GAP, WARM_S = 0.001, 1.0

SETTINGS: Mapping[str, Mapping[str, float]] = {
    "no links": {},
    "16 GiB": {"memory_gib": MEMORY_GIB},
    "1 Gbit/s": {"mbit": 1000.0},
    "100 Mbit/s": {"mbit": 100.0},
}
"""Memory is divided by the original's slowdowns of memory, rates by those of the network."""

CUTS = ("thirds", "operators")

SOUGHT = {
    "bottleneck": replace(PIPELINED, objective="throughput"),
    "step": replace(PIPELINED, objective="step"),
    "sequential": SEQUENTIAL,
}
"""What the best split is sought for."""


@dataclass(frozen=True, slots=True)
class Row:
    """A split of the model.

    Attributes:
        slowdowns: which of the original's.
        setting: memory and links.
        cut: what is not divided.
        split: how it was come by.
        found: what it costs; None where there is none.
        bound_s: what no split is below, in the metric that this one was sought for.
        took_s: to plan.
    """

    slowdowns: str
    setting: str
    cut: str
    split: str
    found: Figures | None
    bound_s: float | None = None
    took_s: float | None = None


def bert(layers: int) -> Any:
    """BERT-large with so many layers, for the original's task."""
    config = transformers.BertConfig(
        num_hidden_layers=layers,
        hidden_size=1024,
        num_attention_heads=16,
        intermediate_size=4096,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=published_code.CLASSES,
    )
    return transformers.BertForSequenceClassification(config)


def measured(layers: int) -> Graph:
    """The model as this processor runs it, one sample at a time."""
    with skyfx.empty_weights():
        model = bert(layers)
    names = ("input_ids", "token_type_ids", "attention_mask")
    shape = (1, published_code.LENGTH)
    batch = {name: torch.zeros(shape, dtype=torch.long, device="meta") for name in names}
    return measure(capture(model, batch), [LocalDevice("cpu", torch.device("cpu"))])


def cluster(kind: str, num_workers: int, *, memory_gib: float = 0.0, mbit: float = 0.0) -> Cluster:
    """The workers, with limits and links where they are given."""
    rooms = published_code.memory_slowdowns(num_workers)
    devices = tuple(
        Device(
            name=f"w{rank}",
            type="cpu",
            slowdown=slowdown,
            memory_bytes=memory_gib * GIB / room if memory_gib else None,
        )
        for rank, (slowdown, room) in enumerate(
            zip(published_code.slowdowns(kind, num_workers), rooms, strict=True), 1
        )
    )
    return Cluster(devices=devices, links=tuple(_links(num_workers, mbit)) if mbit else ())


def _links(num_workers: int, mbit: float) -> Iterator[Link]:
    """Between every two, as fast as the slower one's network."""
    slow = published_code.network_slowdowns(num_workers)
    for a in range(num_workers):
        for b in range(num_workers):
            if a != b:
                rate = mbit * 1e6 / 8 / max(slow[a], slow[b])
                yield Link(
                    source=f"w{a + 1}",
                    target=f"w{b + 1}",
                    bandwidth_bytes_per_s=rate,
                    latency_s=LATENCY_S,
                )


def ideals(graph: Graph, kind: str, num_workers: int) -> dict[str, float]:
    """Seconds by metric, without links: all work at all speeds together, or at the fastest."""
    work = sum(node.time_s("cpu", training=True) for node in graph.nodes)
    slowdowns = published_code.slowdowns(kind, num_workers)
    return {
        "bottleneck": work / sum(1 / slowdown for slowdown in slowdowns),
        "sequential": work * PIPELINED.microbatches * min(slowdowns),
    }


def rows(graph: Graph, num_workers: int, planning_s: float) -> Iterator[Row]:
    """All splits for all slowdowns, settings and cuts."""
    for workers in (cluster("real", num_workers, **given) for given in SETTINGS.values()):
        for asked in SOUGHT.values():  # compiles what the planner runs, which is in no time below
            solve(thirds(graph), workers, asked, time_limit_s=WARM_S)
    for kind in published_code.SLOWDOWNS:
        for setting, given in SETTINGS.items():
            workers = cluster(kind, num_workers, **given)
            for cut in CUTS:
                cutable = thirds(graph) if cut == "thirds" else graph
                for row in _splits(cutable, workers, Row(kind, setting, cut, "", None), planning_s):
                    print(f"{kind}, {setting}, {cut}: {row.split}", file=sys.stderr)
                    yield row


def _splits(graph: Graph, workers: Cluster, row: Row, planning_s: float) -> Iterator[Row]:
    """The even one, the heuristic's, and the best for each metric."""
    if row.cut == "thirds":
        yield replace(row, split="even", found=figures(graph, workers, even(graph, workers)))
    plan = solve(graph, workers, PIPELINED, strategy="dynamic").plan
    found = figures(graph, workers, _placement(plan))
    yield replace(row, split="dynamic", found=found, took_s=plan.solver.wall_s)
    for metric, asked in SOUGHT.items():
        batch = whole(graph, PIPELINED.microbatches) if asked is SEQUENTIAL else graph
        try:
            plan = solve(batch, workers, asked, time_limit_s=planning_s, gap=GAP).plan
        except NoPlanError:
            yield replace(row, split=f"best {metric}", took_s=planning_s)
            continue
        yield replace(
            row,
            split=f"best {metric}",
            found=figures(graph, workers, _placement(plan)),
            bound_s=plan.lower_bound,
            took_s=plan.solver.wall_s,
        )


def _placement(plan: Plan) -> Placement:
    return [(stage.device, stage.nodes) for stage in plan.stages]
