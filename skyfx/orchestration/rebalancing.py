"""Another plan during training, when devices have become slower than they were measured.

step    stages take     over the plan's
40      100 ms          1.00
41      160 ms          1.60   late once
...
45      155 ms          1.55   late `steps` times in a row: plan again, with devices as slow as
that, and move if the new plan gains enough
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median

from torch import nn
from torch.optim import Optimizer

from skyfx.orchestration.assembly import deploy, splitter_for
from skyfx.orchestration.environment import Environment
from skyfx.orchestration.plan_resolution import PlanSource
from skyfx.partitioning.migration import follow, move
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.runtime.distributed.roll_call import enter
from skyfx.runtime.execution.workers import Deployment, StepTimes
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.plan import Plan
from skyfx.solver.costs.cost_model import evaluate
from skyfx.solver.costs.recomputation import with_recomputation
from skyfx.tracing.capture import Capture
from skyfx.tracing.tensor_binding import rebind

CALM = 0.5
"""Late steps are forgotten when a stage is late by less than this part of `above`."""

GAIN = 0.25
"""Another plan is taken if it is faster, relatively, by more than this part of `above`."""


@dataclass(slots=True)
class Rebalancing:
    """The `Rebalancer` of a pipeline that was measured here.

    Attributes:
        captured: the capture that plans are for.
        source: makes plans; its graph has the times of devices without slowdown.
        cluster: the devices with the slowdowns that are known by now.
        expected_s: times of the plan's stages, `(num_stages,)`; None: those the plan predicts.
        late: number of consecutive late steps.
        ratios: measured over expected times of the last steps, each `(num_stages,)`.
    """

    model: nn.Module
    environment: Environment
    captured: Capture
    source: PlanSource
    cluster: Cluster
    expected_s: Sequence[float] | None = None
    late: int = 0
    ratios: list[list[float]] = field(default_factory=list)

    def replan(self, plan: Plan, measured: StepTimes, above: float, steps: int) -> Plan | None:
        """Another plan, if stages are late and it gains enough; all processes agree on it."""
        expected = self.expected_s or [stage.compute_s for stage in plan.stages]
        if not self._is_late(measured.stage_s, expected, above, steps):
            return None
        slower = [median(column) for column in zip(*self.ratios, strict=True)]
        self._forget()
        self.cluster = _slowed(self.cluster, plan, expected, slower)
        enter(self.environment.group, "rebalance", above=above, steps=steps)
        found = self.environment.plan_together(partial(self._better, plan, above))
        if found.stages == plan.stages:
            self.expected_s = [s * ratio for s, ratio in zip(expected, slower, strict=True)]
            return None
        self.expected_s = None
        return found

    def migrate(self, plan: Plan, optimizers: Sequence[Optimizer]) -> Deployment:
        """Move tensors between processes, then to the devices of their stages, and split."""
        environment, captured = self.environment, self.captured
        splitter, ranks = splitter_for(environment, self.model, plan), environment.ranks(plan)
        splitter.assign(captured, to_planner_graph(captured))
        rank_of = {name: ranks[k] for name, k in splitter.owners.items()}
        rebind(captured.module, move(self.model, optimizers, rank_of, environment.group))
        deployment = deploy(environment, splitter, captured)
        follow(optimizers)
        return deployment

    def _is_late(
        self, stage_s: Sequence[float], expected: Sequence[float], above: float, steps: int
    ) -> bool:
        """Count a step; returns whether the slowest stage has now been late for `steps` steps."""
        by = max(stage_s) / max(expected) - 1
        if by < CALM * above:
            self._forget()
            return False
        self.ratios.append([s / max(e, 1e-9) for s, e in zip(stage_s, expected, strict=True)])
        del self.ratios[:-steps]
        self.late += by > above
        return self.late >= steps

    def _forget(self) -> None:
        self.late = 0
        self.ratios.clear()

    def _better(self, plan: Plan, above: float) -> Plan:
        """A plan for the devices as they are now, or the present one if it gains too little."""
        found = self.source.replan(self.cluster)
        placement = [(stage.device, stage.nodes) for stage in plan.stages]
        graph = with_recomputation(self.source.graph, plan.segments())
        now = evaluate(graph, self.cluster, placement, plan.assumptions, live=plan.live)
        gains = found.objective_value < (1 - GAIN * above) * now.objective_value
        return found if gains else plan


def _slowed(
    cluster: Cluster, plan: Plan, expected: Sequence[float], slower: Sequence[float]
) -> Cluster:
    """The cluster with each device slowed down as its stages were."""
    before, now = dict[str, float](), dict[str, float]()
    for stage, seconds, ratio in zip(plan.stages, expected, slower, strict=True):
        before[stage.device] = before.get(stage.device, 0.0) + seconds
        now[stage.device] = now.get(stage.device, 0.0) + seconds * ratio
    devices = tuple(
        replace(device, slowdown=device.slowdown * now[device.name] / before[device.name])
        if before.get(device.name)
        else device
        for device in cluster.devices
    )
    return replace(cluster, devices=devices)
