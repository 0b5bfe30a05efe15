"""Planning anew while training goes on, when devices have become slower than they were measured.

step    stages take     against the plan's
40     100 ms          1.00
41     160 ms          1.60   late once
...
45     155 ms          1.55   late `steps` times in a row: plan with devices as slow as that,
and move, if that gains enough
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from torch import Tensor, nn
from torch.optim import Optimizer

from skyfx.orchestration.environment import Environment
from skyfx.partitioning.migration import follow
from skyfx.partitioning.splitter import Splitter
from skyfx.runtime.execution.runner import Replan, StepTimes
from skyfx.solver.core.cluster import Cluster
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Plan
from skyfx.solver.costs.cost_model import evaluate
from skyfx.tracing.capture import Capture

__all__: list[str] = ["Rebalancing"]

CALM = 0.5
"""Of how late a stage has to be: below this part of it, late steps are forgotten."""

GAIN = 0.25
"""Of how late a stage has to be: what another plan has to gain, relatively, to be moved to."""


@dataclass(slots=True)
class Rebalancing:
    """What `Pipeline.rebalance` asks for another plan.

    Attributes:
        graph: what the plan was made from; times are those of devices without slowdown.
        cluster: the devices as they are known to be now.
        plan_for: the plan for other devices.
        expected_s: of the stages of the plan, `(num_stages,)`; None while it is the plan's own.
        late: how many steps in a row were late.
        ratios: measured over expected of the last steps, each `(num_stages,)`.
    """

    model: nn.Module
    site: Environment
    captured: Capture
    graph: Graph
    cluster: Cluster
    plan_for: Callable[[Cluster], Plan]
    expected_s: Sequence[float] | None = None
    late: int = 0
    ratios: deque[list[float]] = field(default_factory=deque)

    def __call__(
        self,
        plan: Plan,
        measured: StepTimes,
        optimizers: Sequence[Optimizer],
        above: float,
        steps: int,
    ) -> Replan | None:
        """The pipeline's new plan and workers, if it is to have others; all processes agree."""
        expected = self.expected_s or [stage.compute_s for stage in plan.stages]
        if not self._is_late(measured.stage_s, expected, above, steps):
            return None
        slower = [median(column) for column in zip(*self.ratios, strict=True)]
        self._forget()
        self.cluster = _slowed(self.cluster, plan, expected, slower)
        found = self.site.agreed(lambda: self._better(plan, above))
        if found.stages == plan.stages:
            self.expected_s = [s * ratio for s, ratio in zip(expected, slower, strict=True)]
            return None
        self.expected_s = None
        return self._remade(found, optimizers)

    def _is_late(
        self, stage_s: Sequence[float], expected: Sequence[float], above: float, steps: int
    ) -> bool:
        """Note a step; whether the slowest stage has been late for so many steps now."""
        by = max(stage_s) / max(expected) - 1
        if by < CALM * above:
            self._forget()
            return False
        self.ratios.append([s / max(e, 1e-9) for s, e in zip(stage_s, expected, strict=True)])
        while len(self.ratios) > steps:
            self.ratios.popleft()
        self.late += by > above
        return self.late >= steps

    def _forget(self) -> None:
        self.late = 0
        self.ratios.clear()

    def _better(self, plan: Plan, above: float) -> Plan:
        """A plan for the devices as they are now, or the present one where that gains little."""
        found = self.plan_for(self.cluster)
        placement = [(stage.device, stage.nodes) for stage in plan.stages]
        now = evaluate(self.graph, self.cluster, placement, plan.assumptions, live=plan.live)
        gains = found.objective_value < (1 - GAIN * above) * now.objective_value
        return found if gains else plan

    def _remade(self, plan: Plan, optimizers: Sequence[Optimizer]) -> Replan:
        places = self.site.places(plan)

        def moving(owners: Mapping[str, int]) -> Mapping[int, Tensor]:
            return self.site.moved(self.model, optimizers, owners, plan)

        splitter = Splitter(
            self.model, plan, places, self.site.on_cpu(plan), self.captured, moving=moving
        )
        return Replan(
            plan,
            self.site.workers(places, plan),
            splitter,
            self.captured.microbatch,
            lambda: follow(optimizers),
        )


def _slowed(
    cluster: Cluster, plan: Plan, expected: Sequence[float], slower: Sequence[float]
) -> Cluster:
    """The devices, each as much slower as its stages were."""
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
