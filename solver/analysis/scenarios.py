"""The simulated step of a plan, on its cluster and on changed ones."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles

from skyfx.solver.analysis.cluster_changes import Change, apply_changes
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Plan
from skyfx.solver.core.schedule import Orders
from skyfx.solver.core.timeline import Timeline
from skyfx.solver.core.units import seconds, size
from skyfx.solver.costs.action_times import ActionTimes
from skyfx.solver.costs.cost_model import evaluate
from skyfx.solver.costs.recomputation import with_recomputation
from skyfx.solver.costs.simulator import run_schedule
from skyfx.solver.errors import InfeasibleError, NoPlanError

COLUMNS = ("what if", "this plan", "another plan", "its stages")
"""Of the table of scenarios; `Scenario.row` is a row."""

Replan = Callable[[Graph, Cluster], Plan]


@dataclass(frozen=True, slots=True)
class Scenario:
    """The effect of one change of the cluster.

    Attributes:
        change: its text.
        planned_s: a step of the same plan; None where the plan cannot run any more.
        why_not: the reason then.
        replanned: the best plan for the changed cluster; None where none was wanted or exists.
        replanned_s: a step of that plan.
    """

    change: str
    planned_s: float | None
    why_not: str = ""
    replanned: Plan | None = None
    replanned_s: float | None = None

    def row(self, step_s: float) -> tuple[str, str, str, str]:
        """The row of the table; `step_s` is a step on the unchanged cluster."""

        def against(other_s: float | None) -> str:
            if other_s is None:
                return ""
            change = f" ({other_s / step_s - 1:+.1%})" if step_s else ""
            return f"{seconds(other_s)}{change}"

        stages = () if self.replanned is None else self.replanned.stages
        return (
            self.change,
            self.why_not if self.planned_s is None else against(self.planned_s),
            against(self.replanned_s),
            " -> ".join(f"{stage.device} ({len(stage.nodes)})" for stage in stages),
        )


def simulate_plan(graph: Graph, cluster: Cluster, plan: Plan, *, shared: bool = True) -> Timeline:
    """Simulate a step of a plan.

    Args:
        graph: the model.
        cluster: devices and links.
        plan: the plan.
        shared: whether a device's messages share its port to the network.

    Raises:
        ValueError: the plan is for communication through the host, which has no schedule.
    """
    return run_schedule(*_times_and_orders(graph, cluster, plan), shared=shared)


def _times_and_orders(graph: Graph, cluster: Cluster, plan: Plan) -> tuple[ActionTimes, Orders]:
    asked = plan.assumptions
    if asked.communication != "relay":
        raise ValueError(
            f"the plan's communication is {asked.communication!r}: only a pipeline of stages "
            "(relay) has a schedule that can be simulated"
        )
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    graph = with_recomputation(graph, plan.segments())
    actions = plan.orders(asked.microbatches, training=asked.training)
    return ActionTimes.of(graph, cluster, placement, asked), actions


def predict_step_s(graph: Graph, cluster: Cluster, plan: Plan) -> float:
    """Seconds of a step: simulated, or by the formula where there is no schedule to simulate."""
    if plan.assumptions.communication == "relay":
        return simulate_plan(graph, cluster, plan).step_s
    placement = [(stage.device, stage.nodes) for stage in plan.stages]
    return evaluate(graph, cluster, placement, plan.assumptions).step_s


def busy_s(plan: Plan, timeline: Timeline) -> dict[str, float]:
    """Seconds of the step in which each device is busy, in the order of the stages."""
    found = dict.fromkeys((stage.device for stage in plan.stages), 0.0)
    for done in timeline.done:
        found[plan.stages[done.action.stage].device] += done.ended_s - done.began_s
    return found


def spread(
    graph: Graph, cluster: Cluster, plan: Plan, jitter: float, runs: int, seed: int
) -> tuple[float, float]:
    """Median and 95th percentile of a step whose actions take random times.

    Args:
        graph: the model.
        cluster: devices and links.
        plan: the plan.
        jitter: standard deviation of the logarithm of the factor on an action's seconds.
        runs: number of steps.
        seed: of the random factors.
    """
    draws = random.Random(seed)  # noqa: S311 - no secrets
    times, actions = _times_and_orders(graph, cluster, plan)

    def factor() -> float:
        return math.exp(draws.gauss(0.0, jitter))

    steps = [run_schedule(times, actions, draw_factor=factor).step_s for _ in range(runs)]
    cuts = quantiles(steps, n=20, method="inclusive")
    return cuts[9], cuts[18]


def scenarios(
    graph: Graph,
    cluster: Cluster,
    plan: Plan,
    changes: Sequence[Change],
    replan: Replan | None = None,
) -> Iterator[Scenario]:
    """The effect of each change alone, with the same plan and, if asked for, with the best one."""
    for change in changes:
        other = apply_changes(cluster, [change])
        why_not = _why_not(plan, other)
        planned_s = None if why_not else predict_step_s(graph, other, plan)
        best = None
        if replan is not None:
            try:
                best = replan(graph, other)
            except (InfeasibleError, NoPlanError) as error:
                why_not = why_not or str(error)
        best_s = None if best is None else predict_step_s(graph, other, best)
        yield Scenario(change.text, planned_s, why_not, best, best_s)


def _why_not(plan: Plan, cluster: Cluster) -> str:
    """Why a plan does not run on this cluster; empty where it does."""
    devices = {device.name: device for device in cluster.devices}
    needed = dict[str, float]()
    for k, stage in enumerate(plan.stages):
        if stage.device not in devices:
            return f"stage {k} is on {stage.device}"
        needed[stage.device] = needed.get(stage.device, 0.0) + stage.memory_bytes
    for name, needs in needed.items():
        limit = devices[name].memory_bytes
        if limit is not None and needs > limit:
            return f"{name} has {size(limit)} and needs {size(needs)}"
    return ""
