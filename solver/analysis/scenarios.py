"""A plan's step when it is followed, as things are and as they might be."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles

from skyfx.solver.analysis.cluster_changes import Change, changed
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Plan
from skyfx.solver.core.schedule import Orders
from skyfx.solver.core.timeline import Timeline
from skyfx.solver.core.units import seconds, size
from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.simulator import follow
from skyfx.solver.errors import InfeasibleError, NoPlanError

__all__: list[str] = ["COLUMNS", "Replan", "Scenario", "busy_s", "followed", "scenarios", "spread"]

COLUMNS = ("what if", "this plan", "another plan", "its stages")
"""Of a table of outlooks; `Scenario.row` is one of its rows."""

Replan = Callable[[Graph, Cluster], Plan]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a change of the cluster brings.

    Attributes:
        change: as it was asked for.
        planned_s: a step by the same plan; None where that cannot run any more.
        why_not: the reason then.
        replanned: the best plan for the changed cluster; None where none was asked for, or is.
        replanned_s: a step by it.
    """

    change: str
    planned_s: float | None
    why_not: str = ""
    replanned: Plan | None = None
    replanned_s: float | None = None

    def row(self, step_s: float) -> tuple[str, str, str, str]:
        """For people, beside a step as things are."""

        def against(other_s: float | None) -> str:
            return "" if other_s is None else f"{seconds(other_s)} ({other_s / step_s - 1:+.1%})"

        stages = () if self.replanned is None else self.replanned.stages
        return (
            self.change,
            self.why_not if self.planned_s is None else against(self.planned_s),
            against(self.replanned_s),
            " -> ".join(f"{stage.device} ({len(stage.nodes)})" for stage in stages),
        )


def followed(graph: Graph, cluster: Cluster, plan: Plan, *, shared: bool = True) -> Timeline:
    """The step of a plan.

    Args:
        graph: the model.
        cluster: devices and links.
        plan: the plan to follow.
        shared: whether a device's messages share its port to the network.

    Raises:
        ValueError: the plan is for communication through the host, which no pipeline follows.
    """
    return follow(*_course(graph, cluster, plan), shared=shared)


def _course(graph: Graph, cluster: Cluster, plan: Plan) -> tuple[ActionTimes, Orders]:
    asked = plan.assumptions
    if asked.communication != "relay":
        raise ValueError(
            f"the plan's communication is {asked.communication!r}: only a pipeline of stages "
            "(relay) has a schedule that can be followed"
        )
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    actions = plan.orders(asked.microbatches, training=asked.training)
    return ActionTimes.of(graph, cluster, placement, asked), actions


def busy_s(plan: Plan, timeline: Timeline) -> dict[str, float]:
    """Seconds of the step in which each device takes an action, in the order of the stages."""
    found = dict.fromkeys((stage.device for stage in plan.stages), 0.0)
    for done in timeline.done:
        found[plan.stages[done.action.stage].device] += done.ended_s - done.began_s
    return found


def spread(
    graph: Graph, cluster: Cluster, plan: Plan, jitter: float, runs: int, seed: int
) -> tuple[float, float]:
    """Median and 95th percentile of a step whose actions take now more and now less.

    Args:
        graph: the model.
        cluster: devices and links.
        plan: the plan to follow.
        jitter: standard deviation of the logarithm of how many times as long an action takes.
        runs: how many steps.
        seed: of what is drawn.
    """
    drawn = random.Random(seed)  # noqa: S311 - no secrets
    pace, actions = _course(graph, cluster, plan)
    steps = [
        follow(pace, actions, drawn=lambda: math.exp(drawn.gauss(0.0, jitter))).step_s
        for _ in range(runs)
    ]
    cuts = quantiles(steps, n=20, method="inclusive")
    return cuts[9], cuts[18]


def scenarios(
    graph: Graph,
    cluster: Cluster,
    plan: Plan,
    changes: Sequence[Change],
    replan: Replan | None = None,
) -> Iterator[Scenario]:
    """What each change brings by itself, by the same plan and, if asked, by the best one then."""
    for change in changes:
        other = changed(cluster, [change])
        why_not = _why_not(plan, other)
        planned_s = None if why_not else followed(graph, other, plan).step_s
        best = None
        if replan is not None:
            try:
                best = replan(graph, other)
            except (InfeasibleError, NoPlanError) as error:
                why_not = why_not or str(error)
        best_s = None if best is None else followed(graph, other, best).step_s
        yield Scenario(change.text, planned_s, why_not, best, best_s)


def _why_not(plan: Plan, cluster: Cluster) -> str:
    """Why a plan does not run on these devices; empty where it does."""
    devices = {device.name: device for device in cluster.devices}
    needed = dict[str, float]()
    for k, stage in enumerate(plan.stages):
        if stage.device not in devices:
            return f"stage {k} is on {stage.device}"
        needed[stage.device] = needed.get(stage.device, 0.0) + stage.memory_bytes
    for name, needs in needed.items():
        limit = devices[name].memory_bytes
        if limit is not None and needs > limit:
            return f"{name} has {size(limit)}, and needs {size(needs)}"
    return ""
