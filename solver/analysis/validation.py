"""The rules of a valid plan, one function per rule.

Each yields the faults that it finds, one line per fault.
"""

import itertools
import math
from collections.abc import Iterator

from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.pins import Pin
from skyfx.solver.core.plan import Plan, relative_gap
from skyfx.solver.core.schedule import deadlock_reason
from skyfx.solver.costs.cost_model import Cost, by_device, evaluate
from skyfx.solver.costs.recomputation import (
    recompute_s,
    recomputed_in,
    segment_faults,
    with_recomputation,
)
from skyfx.solver.costs.simulator import simulate

FIGURE_TOLERANCE = 1e-6
MEMORY_TOLERANCE = 1e-9


def validate(graph: Graph, cluster: Cluster, plan: Plan) -> tuple[str, ...]:
    """Check every rule and every figure of `docs/formats.md`.

    Returns:
        The faults, empty for a valid plan. Where nodes or devices do not match, no other rule is
        checked.
    """
    faults = [
        *known_devices(cluster, plan),
        *one_stage_per_device(plan),
        *every_node_once(graph, plan),
        *counts_are_possible(plan),
    ]
    if faults:
        return tuple(faults)
    faults = [*edges_lead_forward(graph, plan), *colocated_together(graph, plan)]
    faults += pins_hold(graph, plan)
    cannot_repeat = [*segments_can_be_recomputed(graph, plan)]
    if cannot_repeat:
        return (*faults, *cannot_repeat)
    graph = with_recomputation(graph, plan.segments())
    cannot_run = [*types_can_run(graph, cluster, plan)]
    if not cannot_run:  # else the figures are infinite
        faults += [*memory_fits(graph, cluster, plan), *figures_agree(graph, cluster, plan)]
        faults += simulated_step_agrees(graph, cluster, plan)
    return (*faults, *cannot_run, *certificate_holds(plan))


def known_devices(cluster: Cluster, plan: Plan) -> Iterator[str]:
    """Every stage's device is in the cluster."""
    names = {device.name for device in cluster.devices}
    for k, stage in enumerate(plan.stages):
        if stage.device not in names:
            yield (
                f"stage {k}: device {stage.device!r} is not in the cluster "
                f"({', '.join(sorted(names))})"
            )


def one_stage_per_device(plan: Plan) -> Iterator[str]:
    """No device holds two stages; with the schedule `interleaved`, no two neighbours."""
    if plan.assumptions.schedule == "interleaved":
        for k, (one, two) in enumerate(itertools.pairwise(plan.stages)):
            if one.device == two.device:
                yield f"stage {k + 1}: device {two.device!r} already holds its neighbour, stage {k}"
        return
    first: dict[str, int] = {}
    for k, stage in enumerate(plan.stages):
        if stage.device in first:
            yield f"stage {k}: device {stage.device!r} already holds stage {first[stage.device]}"
        first.setdefault(stage.device, k)


def every_node_once(graph: Graph, plan: Plan) -> Iterator[str]:
    """Every node of the graph is in exactly one stage, and no other node is."""
    missing = {node.id for node in graph.nodes}
    known = frozenset(missing)
    for k, stage in enumerate(plan.stages):
        for name in stage.nodes:
            if name not in known:
                yield f"stage {k}: {name!r} is no node of the graph"
            elif name not in missing:
                yield f"stage {k}: node {name!r} is in a stage already"
            missing.discard(name)
    if missing:
        yield f"{len(missing)} of {len(known)} nodes are in no stage, for one {min(missing)!r}"


def counts_are_possible(plan: Plan) -> Iterator[str]:
    """The plan's counts of micro-batches in flight make no deadlock."""
    if plan.live is None:  # the schedule has its own counts
        return
    if fault := deadlock_reason(plan.live):
        yield fault
    elif plan.live[0] > plan.assumptions.microbatches:
        yield (
            f"stage 0: found {plan.live[0]} micro-batches in flight, expected at most "
            f"{plan.assumptions.microbatches}, as many as a step has"
        )


def edges_lead_forward(graph: Graph, plan: Plan) -> Iterator[str]:
    """No edge leads from a later stage to an earlier one, and gradients add up in their order."""
    stage_of = plan.stage_of()
    for node in graph.nodes:
        for name in node.inputs:
            if stage_of[name] > stage_of[node.id]:
                yield (
                    f"node {node.id!r} in stage {stage_of[node.id]} reads {name!r}, "
                    f"which stage {stage_of[name]} makes"
                )
        for name in node.after if plan.assumptions.training else ():
            if stage_of[name] > stage_of[node.id]:
                yield (
                    f"node {node.id!r} in stage {stage_of[node.id]} comes after {name!r}, "
                    f"which is in stage {stage_of[name]}"
                )


def colocated_together(graph: Graph, plan: Plan) -> Iterator[str]:
    """Nodes with the same `colocate` label share a stage."""
    stage_of = plan.stage_of()
    groups: dict[str, set[int]] = {}
    for node in graph.nodes:
        if node.colocate is not None:
            groups.setdefault(node.colocate, set()).add(stage_of[node.id])
    for label, stages in groups.items():
        if len(stages) > 1:
            yield f"colocation {label!r} is split over stages {sorted(stages)}"


def pins_hold(graph: Graph, plan: Plan) -> Iterator[str]:
    """Pinned nodes are on the device of their pin, or not on it, as the pin says."""
    nodes = {node.id: node for node in graph.nodes}
    for pin in map(Pin.of, plan.assumptions.pins):
        for k, stage in enumerate(plan.stages):
            for name in stage.nodes:
                if not pin.allows(stage.device) and pin.matches(nodes[name]):
                    yield f"stage {k}: node {name!r} is on {stage.device!r} against pin '{pin}'"


def segments_can_be_recomputed(graph: Graph, plan: Plan) -> Iterator[str]:
    """Each segment is of neighbours in its stage that may run again, and the plan may have some."""
    segments = plan.segments()
    if segments and (plan.assumptions.recompute == "never" or not plan.assumptions.training):
        yield f"{len(segments)} segments are recomputed, the assumptions allow none"
    for k, stage in enumerate(plan.stages):
        for fault in segment_faults(graph, stage.nodes, stage.recompute):
            yield f"stage {k}: {fault}"


def types_can_run(graph: Graph, cluster: Cluster, plan: Plan) -> Iterator[str]:
    """Each node is on a device whose type can run it."""
    types = {device.name: device.type for device in cluster.devices}
    nodes = {node.id: node for node in graph.nodes}
    for k, stage in enumerate(plan.stages):
        kind = types[stage.device]
        for name in stage.nodes:
            if not nodes[name].runs_on(kind, training=plan.assumptions.training):
                yield f"stage {k}: {stage.device!r} of type {kind!r} cannot run {name!r}"


def memory_fits(graph: Graph, cluster: Cluster, plan: Plan) -> Iterator[str]:
    """No device's stages need more memory than it has."""
    limits = {device.name: device.memory_bytes for device in cluster.devices}
    names = [stage.device for stage in plan.stages]
    for name, need in by_device(names, _cost(graph, cluster, plan).memory_bytes).items():
        limit = limits[name]
        if limit is not None and need > limit * (1 + MEMORY_TOLERANCE):
            numbers = ", ".join(str(k) for k, other in enumerate(names) if other == name)
            yield f"stage {numbers}: needs {need:.0f} bytes, {name!r} has {limit:.0f}"


def figures_agree(graph: Graph, cluster: Cluster, plan: Plan) -> Iterator[str]:
    """The plan's figures are those of the cost model."""
    cost = _cost(graph, cluster, plan)
    for field in ("bottleneck_s", "step_s", "objective_value"):
        yield from _agrees(field, getattr(plan, field), getattr(cost, field))
    for k, stage in enumerate(plan.stages):
        for field in ("compute_s", "receive_s", "send_s", "time_s", "memory_bytes"):
            yield from _agrees(f"stage {k} {field}", getattr(stage, field), getattr(cost, field)[k])
    devices = {device.name: device for device in cluster.devices}
    for k, stage in enumerate(plan.stages):
        again = recomputed_in(graph, stage.nodes)
        seconds = recompute_s(devices[stage.device], again)
        yield from _agrees(f"stage {k} recompute_s", stage.recompute_s, seconds)
        kept = sum(node.again_bytes for node in again)
        yield from _agrees(f"stage {k} recompute_bytes", stage.recompute_bytes, kept)
    if any(cost.flops) and any(stage.flops for stage in plan.stages):  # both have counts
        for k, stage in enumerate(plan.stages):
            yield from _agrees(f"stage {k} flops", stage.flops, cost.flops[k])


def simulated_step_agrees(graph: Graph, cluster: Cluster, plan: Plan) -> Iterator[str]:
    """The plan's simulated step, if it has one, is that of its schedule."""
    if plan.live and plan.simulated_s and plan.assumptions.communication == "relay":
        placement = [(stage.device, stage.nodes) for stage in plan.stages]
        found = simulate(graph, cluster, placement, plan.assumptions, plan.live).step_s
        yield from _agrees("simulated_s", plan.simulated_s, found)


def certificate_holds(plan: Plan) -> Iterator[str]:
    """The bound is not above the plan, and the gap is the distance between them."""
    if plan.lower_bound > plan.objective_value * (1 + FIGURE_TOLERANCE):
        yield f"lower_bound {plan.lower_bound!r} is above the plan's {plan.objective_value!r}"
    gap = relative_gap(plan.objective_value, plan.lower_bound)
    if (plan.gap is None) != (gap is None) or (
        gap is not None and abs((plan.gap or 0.0) - gap) > FIGURE_TOLERANCE * max(1.0, gap)
    ):
        yield f"gap: the plan says {plan.gap!r}, objective_value / lower_bound - 1 is {gap!r}"


def _cost(graph: Graph, cluster: Cluster, plan: Plan) -> Cost:
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    return evaluate(graph, cluster, placement, plan.assumptions, plan.live)


def _agrees(field: str, said: float, found: float) -> Iterator[str]:
    if not math.isclose(said, found, rel_tol=FIGURE_TOLERANCE, abs_tol=FIGURE_TOLERANCE * 1e-12):
        yield f"{field}: the plan says {said!r}, it is {found!r}"
