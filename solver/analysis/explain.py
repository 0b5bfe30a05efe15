"""A plan in sentences: its bottleneck, its certificate, and the gain of 10 % more of anything."""

from collections.abc import Iterator
from itertools import pairwise

from skyfx.solver.analysis.cluster_changes import Change
from skyfx.solver.analysis.scenarios import (
    Replan,
    Scenario,
    busy_s,
    predict_step_s,
    scenarios,
    simulate_plan,
)
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Plan, Stage
from skyfx.solver.core.units import operations, percent, seconds, size

MORE = 1.1
"""A tenth more of each device, link and memory."""

NOTICEABLE = 0.001
"""A smaller part of a step counts as no gain."""


def explain_plan(graph: Graph, cluster: Cluster, plan: Plan, replan: Replan) -> Iterator[str]:
    """The sentences, one at a time; `replan` is called for each device, link and memory."""
    yield _bottleneck(plan)
    step = predict_step_s(graph, cluster, plan)
    if len(plan.stages) > 1 and plan.assumptions.communication == "relay" and step:
        busy = busy_s(plan, simulate_plan(graph, cluster, plan)).values()
        yield (
            f"A simulated step takes {seconds(step)}; the devices are busy for "
            f"{min(busy) / step:.0%} to {max(busy) / step:.0%} of it."
        )
    yield from _operations(plan)
    yield _certificate(plan)
    yield from _others(plan)
    yield from _full(cluster, plan)
    yield from _recomputed(plan)
    changes = [Change.of(text, graph) for text in _tenths(cluster, plan)]
    found = [*scenarios(graph, cluster, plan, changes, replan)]
    yield from _sensitivity(found, step)


def _bottleneck(plan: Plan) -> str:
    k, stage = max(enumerate(plan.stages), key=lambda numbered: numbered[1].time_s)
    return (
        f"Stage {k} on {stage.device} is the bottleneck: {seconds(stage.time_s)} per micro-batch, "
        f"{_parts(stage, plan)}."
    )


def _parts(stage: Stage, plan: Plan) -> str:
    parts = {"computing": stage.compute_s, "receiving": stage.receive_s, "sending": stage.send_s}
    said = ", ".join(f"{seconds(value)} {name}" for name, value in parts.items() if value)
    at_once = " (at the same time)" if plan.assumptions.overlap == "full" else ""
    return (said or "0 s computing") + at_once


def _operations(plan: Plan) -> Iterator[str]:
    """How fast the devices compute, where the graph has operation counts."""
    known = sorted((s for s in plan.stages if s.flops_per_s), key=lambda stage: stage.flops_per_s)
    if known:
        ends = dict.fromkeys((known[0], known[-1]))
        rates = " and ".join(f"{s.device} runs {operations(s.flops_per_s)}/s" for s in ends)
        total = operations(sum(stage.flops for stage in plan.stages))
        yield f"A micro-batch takes {total} (matrix products, convolutions, attention): {rates}."


def _certificate(plan: Plan) -> str:
    asked = plan.assumptions.objective
    value, bound = seconds(plan.objective_value), seconds(plan.lower_bound)
    return (
        f"The plan's {asked} is {value}. No plan for these files is below {bound} "
        f"(proven by {plan.solver.binding!r}): gap {percent(plan.gap)}."
    )


def _others(plan: Plan) -> Iterator[str]:
    """The objective of the baselines, and their ratio to the plan."""
    others = {
        "an even split": plan.alternatives.even,
        "the dynamic rule": plan.alternatives.dynamic,
        "the best single device": plan.alternatives.best_single_device,
    }
    for name, value in others.items():
        if value is None:
            yield f"{name.capitalize()} does not fit into memory."
        elif plan.objective_value:
            times = value / plan.objective_value
            yield f"{name.capitalize()} would take {seconds(value)}, {times:.2f} times as long."


def _full(cluster: Cluster, plan: Plan) -> Iterator[str]:
    limits = {device.name: device.memory_bytes for device in cluster.devices}
    for k, stage in enumerate(plan.stages):
        limit = limits.get(stage.device)
        if limit:
            yield (
                f"Stage {k} needs {size(stage.memory_bytes)} of the {size(limit)} of "
                f"{stage.device} ({stage.memory_bytes / limit:.0%})."
            )


def _recomputed(plan: Plan) -> Iterator[str]:
    """What stages run again in backward, and what for."""
    for k, stage in enumerate(plan.stages):
        if stage.recompute:
            yield (
                f"Stage {k} runs {sum(map(len, stage.recompute))} of its {len(stage.nodes)} nodes "
                f"again in backward: {seconds(stage.recompute_s)} more per micro-batch, and "
                f"{size(stage.recompute_bytes)} of each in flight are not kept."
            )


def _tenths(cluster: Cluster, plan: Plan) -> Iterator[str]:
    """Changes to a tenth more of each device, each link in use, and each memory."""
    names = [device.name for device in cluster.devices]
    yield from (f"slow {name} x{1 / MORE:.6g}" for name in names)
    wires = cluster.wiring()
    used = dict.fromkeys(stage.device for stage in plan.stages)
    for a, b in pairwise(used):
        if wires(a, b) is not None and wires(b, a) is not None:
            yield f"link {a} {b} x{MORE:g}"
    yield from (f"memory {d.name} x{MORE:g}" for d in cluster.devices if d.memory_bytes is not None)


def _sensitivity(found: list[Scenario], step_s: float) -> Iterator[str]:
    """The gain of each change, the largest first."""
    gains = {one: _gain(_best_s(one, step_s), step_s) for one in found}
    useless = []
    for one in sorted(found, key=lambda one: -gains[one]):
        if gains[one] < NOTICEABLE:
            useless.append(_of(one))
            continue
        how = "with the same plan"
        if one.replanned_s is not None and one.replanned_s < (one.planned_s or step_s):
            gain = _gain(one.planned_s, step_s)
            same = f"{gain:.1%}" if gain >= NOTICEABLE else "nothing"
            how = f"with another plan; with this one {same}"
        yield (
            f"A tenth more of {_of(one)} would save {gains[one]:.1%} of the step "
            f"({seconds(_best_s(one, step_s))}), {how}."
        )
    if useless:
        yield f"A tenth more of {', '.join(useless)} would save nothing."


def _best_s(one: Scenario, step_s: float) -> float:
    return min(x for x in (one.planned_s, one.replanned_s, step_s) if x is not None)


def _gain(other_s: float | None, step_s: float) -> float:
    return 0.0 if other_s is None or not step_s else 1 - other_s / step_s


def _of(one: Scenario) -> str:
    word, *names, _ = one.change.split()
    if word == "link":
        return f"the link {names[0]} - {names[1]}"
    return names[0] if word == "slow" else f"{names[0]}'s memory"
