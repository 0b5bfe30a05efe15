"""A plan in sentences: what binds it, how good it is, what a tenth more of anything would bring."""

from collections.abc import Iterator
from itertools import pairwise

from skyfx.solver.analysis.cluster_changes import Change
from skyfx.solver.analysis.scenarios import Replan, Scenario, busy_s, followed, scenarios
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Plan, Stage
from skyfx.solver.core.units import operations, percent, seconds, size

__all__: list[str] = ["explained"]

MORE = 1.1
"""Of each device, link and memory: a tenth."""

NOTICEABLE = 0.001
"""What brings less of a step is said to bring nothing."""


def explained(graph: Graph, cluster: Cluster, plan: Plan, replan: Replan) -> Iterator[str]:
    """The sentences, as they are found; `replan` is asked for each device, link and memory."""
    timeline = followed(graph, cluster, plan)
    yield _bottleneck(plan)
    busy = busy_s(plan, timeline)
    least, most = min(busy.values()), max(busy.values())
    if len(busy) > 1:
        yield (
            f"A step takes {seconds(timeline.step_s)} when it is followed; its devices are busy "
            f"for {least / timeline.step_s:.0%} to {most / timeline.step_s:.0%} of it."
        )
    yield from _operations(plan)
    yield _certificate(plan)
    yield from _others(plan)
    yield from _full(cluster, plan)
    changes = [Change.of(text, graph) for text in _tenths(cluster, plan)]
    found = [*scenarios(graph, cluster, plan, changes, replan)]
    yield from _sensitivity(found, timeline.step_s)


def _bottleneck(plan: Plan) -> str:
    k = max(range(len(plan.stages)), key=lambda k: plan.stages[k].time_s)
    stage = plan.stages[k]
    return (
        f"Stage {k} on {stage.device} binds: {seconds(stage.time_s)} a micro-batch, "
        f"{_parts(stage, plan)}."
    )


def _parts(stage: Stage, plan: Plan) -> str:
    parts = {
        "computing": stage.compute_s,
        "receiving": stage.receive_s,
        "sending": stage.send_s,
    }
    said = ", ".join(f"{seconds(value)} {name}" for name, value in parts.items() if value)
    at_once = " (at the same time)" if plan.assumptions.overlap == "full" else ""
    return (said or "nothing of it computing") + at_once


def _operations(plan: Plan) -> Iterator[str]:
    """How fast the devices compute, where the graph says what there is to compute."""
    known = sorted((s for s in plan.stages if s.flops_per_s), key=lambda stage: stage.flops_per_s)
    if known:
        ends = dict.fromkeys((known[0], known[-1]))
        rates = " and ".join(f"{s.device} does {operations(s.flops_per_s)}/s" for s in ends)
        total = operations(sum(stage.flops for stage in plan.stages))
        yield f"A micro-batch takes {total} (matrix products, convolutions, attention): {rates}."


def _certificate(plan: Plan) -> str:
    asked = plan.assumptions.objective
    value, bound = seconds(plan.objective_value), seconds(plan.lower_bound)
    return (
        f"The plan's {asked} is {value}, and no plan for these files is below {bound}, as "
        f"{plan.solver.binding!r} proves: it is within {percent(plan.gap)} of the best."
    )


def _others(plan: Plan) -> Iterator[str]:
    """What one would do by hand, and how much longer it takes."""
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
            yield f"{name.capitalize()} would have {seconds(value)}, {times:.2f} times as much."


def _full(cluster: Cluster, plan: Plan) -> Iterator[str]:
    limits = {device.name: device.memory_bytes for device in cluster.devices}
    for k, stage in enumerate(plan.stages):
        limit = limits.get(stage.device)
        if limit:
            yield (
                f"Stage {k} takes {size(stage.memory_bytes)} of the {size(limit)} that "
                f"{stage.device} has ({stage.memory_bytes / limit:.0%})."
            )


def _tenths(cluster: Cluster, plan: Plan) -> Iterator[str]:
    """Changes that give a tenth more of each device, each link in use, and each memory."""
    names = [device.name for device in cluster.devices]
    yield from (f"slow {name} x{1 / MORE:.6g}" for name in names)
    wires = cluster.wiring()
    used = dict.fromkeys(stage.device for stage in plan.stages)
    for a, b in pairwise(used):
        if wires(a, b) is not None and wires(b, a) is not None:
            yield f"link {a} {b} x{MORE:g}"
    yield from (f"memory {d.name} x{MORE:g}" for d in cluster.devices if d.memory_bytes is not None)


def _sensitivity(found: list[Scenario], step_s: float) -> Iterator[str]:
    """What each change brings, the most first."""
    gains = {one: 1 - _best_s(one, step_s) / step_s for one in found}
    useless = []
    for one in sorted(found, key=lambda one: -gains[one]):
        if gains[one] < NOTICEABLE:
            useless.append(_of(one))
            continue
        as_is = "the same plan would do"
        if one.replanned_s is not None and one.replanned_s < (one.planned_s or step_s):
            as_is = f"with another plan; with this one {_less(one.planned_s, step_s)}"
        yield (
            f"A tenth more of {_of(one)} would bring {gains[one]:.1%} of the step "
            f"({seconds(_best_s(one, step_s))}), {as_is}."
        )
    if useless:
        yield f"A tenth more of {', '.join(useless)} would bring nothing."


def _best_s(one: Scenario, step_s: float) -> float:
    return min(x for x in (one.planned_s, one.replanned_s, step_s) if x is not None)


def _less(planned_s: float | None, step_s: float) -> str:
    gain = 0.0 if planned_s is None else 1 - planned_s / step_s
    return f"{gain:.1%}" if gain >= NOTICEABLE else "nothing"


def _of(one: Scenario) -> str:
    word, *names, _ = one.change.split()
    if word == "link":
        return f"the link {names[0]} - {names[1]}"
    return names[0] if word == "slow" else f"{names[0]}'s memory"
