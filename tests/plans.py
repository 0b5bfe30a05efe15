"""Plans that split a model whether or not that is fast: what exactness is tested on."""

from dataclasses import replace
from typing import Any

import skyfx
from skyfx.captures import Capture, capture
from skyfx.devices import resolve
from skyfx.outline import outline
from skyfx.runtime.microbatch import Batch
from skyfx.solver import Assumptions, Plan, solve
from tests.models import BATCH, Case

NUM_MICROBATCHES = 4
SIZE = BATCH // NUM_MICROBATCHES


def even_plan(captured: Capture, num_devices: int, **assumptions: Any) -> Plan:
    """Equal numbers of operators on each of so many CPUs, as if each took a second."""
    graph = outline(captured)
    nodes = tuple(
        node if node.op in ("input", "get_attr") else replace(node, forward_s={"cpu": 1.0})
        for node in graph.nodes
    )
    cluster, _ = resolve(["cpu"] * num_devices)
    given = Assumptions(**{"microbatches": NUM_MICROBATCHES, **assumptions})
    return solve(replace(graph, nodes=nodes), cluster, given, strategy="even").plan


def split_evenly(case: Case, num_devices: int = 3, **assumptions: Any) -> skyfx.Pipeline:
    """A pipeline of the model with a stage on every device."""
    training = assumptions.get("mode", "training") == "training"
    microbatch = Batch.of(case.batch).split(SIZE)[0]
    captured = capture(case.model, microbatch, training=training)
    plan = even_plan(captured, num_devices, **assumptions)
    assert len(plan.stages) == num_devices
    return skyfx.partition(case.model, ["cpu"] * num_devices, example_inputs=case.batch, plan=plan)
