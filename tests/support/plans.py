"""Plans that split a model whether or not that is fast: what exactness is tested on."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from torch import nn

import skyfx
from skyfx.devices.resolve import resolve
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.runtime.batches.microbatch import Batch
from skyfx.solver import Assumptions, Graph, Plan, solve
from skyfx.solver.costs.recomputation import segment_faults
from skyfx.tracing.capture import Capture
from skyfx.verification.cut_decision import batch_rule, capture_microbatch, decide
from tests.support.models import BATCH, Case

NUM_MICROBATCHES = 4
SIZE = BATCH // NUM_MICROBATCHES
LIVE = (4, 4, 4, 3, 3, 1)
"""Live micro-batches of the last stages, where a plan has to say how many."""


def capture_first(
    model: nn.Module,
    inputs: Any,
    number: int = NUM_MICROBATCHES,
    batch_dims: Any = None,
    *,
    training: bool = True,
    verify: bool = True,
) -> Capture:
    """The capture of the first of so many micro-batches, as `partition` makes it."""
    batch = Batch.of(inputs)
    rule = batch_rule(model, batch, batch_dims)
    cut = decide(model, batch, rule, number, training=training, verify=verify)
    return capture_microbatch(model, batch, cut, training=training)


GRAPHS: dict[tuple[str, bool], Graph] = {}
"""By the name of a case and whether it is trained: capturing takes longer than most tests."""


def graph_of(case: Case, *, training: bool = True) -> Graph:
    """What the planner sees of the first micro-batch of a case."""
    key = (case.name or "", training)
    if key not in GRAPHS or not case.name:
        captured = capture_first(case.model, case.batch, training=training, verify=False)
        GRAPHS[key] = to_planner_graph(captured)
    return GRAPHS[key]


def even_plan(captured: Capture | Graph, num_devices: int, **assumptions: Any) -> Plan:
    """Equal numbers of operators on each of so many CPUs, as if each took a second."""
    graph = captured if isinstance(captured, Graph) else to_planner_graph(captured)
    nodes = tuple(
        node if node.op in ("input", "get_attr") else replace(node, forward_s={"cpu": 1.0})
        for node in graph.nodes
    )
    cluster, _ = resolve(["cpu"] * num_devices)
    given = Assumptions(**{"microbatches": NUM_MICROBATCHES, **assumptions})
    return solve(replace(graph, nodes=nodes), cluster, given, strategy="even").plan


def generated_plan(captured: Capture | Graph, live: Sequence[int], **assumptions: Any) -> Plan:
    """An even plan with a stage for each of these counts of live micro-batches."""
    plan = even_plan(captured, len(live), **assumptions)
    stages = [replace(s, live=count) for s, count in zip(plan.stages, live, strict=True)]
    given = replace(plan.assumptions, schedule="generated")
    return replace(plan, assumptions=given, stages=tuple(stages))


def interleaved_plan(
    captured: Capture | Graph, live: Sequence[int], names: Sequence[str], **assumptions: Any
) -> Plan:
    """As `generated_plan`, with the stages in turn on the devices of these names."""
    plan = generated_plan(captured, live, **assumptions)
    stages = [replace(s, device=names[k % len(names)]) for k, s in enumerate(plan.stages)]
    given = replace(plan.assumptions, schedule="interleaved")
    return replace(plan, assumptions=given, stages=tuple(stages))


def split_evenly(
    case: Case, num_devices: int = 3, *, check: Any = "off", **assumptions: Any
) -> skyfx.Pipeline:
    """A pipeline of the model with a stage on every device, two where they are interleaved.

    It is not checked unless that is asked for, as tests hold it against plain torch themselves.
    """
    captured = graph_of(case, training=assumptions.get("mode", "training") == "training")
    schedule = assumptions.pop("schedule", "1f1b")
    if schedule == "generated":
        plan = generated_plan(captured, LIVE[-num_devices:], **assumptions)
    elif schedule == "interleaved":
        names = [f"cpu:{d}" for d in range(num_devices)]
        plan = interleaved_plan(captured, LIVE[-2 * num_devices :], names, **assumptions)
    else:
        plan = even_plan(captured, num_devices, schedule=schedule, **assumptions)
    assert len({stage.device for stage in plan.stages}) == num_devices
    devices = ["cpu"] * num_devices
    return skyfx.partition(case.model, devices, example_inputs=case.batch, plan=plan, check=check)


def recomputing(plan: Plan, graph: Graph, random: Random, longest: int = 12) -> Plan:
    """The plan with random segments of its stages recomputed, and all of the stages covered."""
    found = []
    for stage in plan.stages:
        names = [node.id for node in graph.nodes if node.id in stage.nodes]
        segments, begin = list[tuple[str, ...]](), 0
        while begin < len(names):
            sizes = range(1, longest + 1)
            runs = [tuple(names[begin : begin + size]) for size in sizes]
            legal = [run for run in runs if not any(segment_faults(graph, names, [run]))]
            if legal:
                segments.append(random.choice(legal))
            begin += len(segments[-1]) if legal else 1
        found.append(replace(stage, recompute=tuple(segments)))
    asked = replace(plan.assumptions, recompute="auto")
    return replace(plan, stages=tuple(found), assumptions=asked)
