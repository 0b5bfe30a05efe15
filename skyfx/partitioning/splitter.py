"""Splitting a model the way a plan says, for each mode and shape of micro-batch that comes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skyfx.partitioning.stage_builder import match, owned, split
from skyfx.partitioning.weights import Weights, place_tensors
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.execution.microbatch import Batch
from skyfx.runtime.execution.step import StagedModel
from skyfx.solver.core.plan import Plan
from skyfx.solver.core.schedule import deadlock_reason
from skyfx.solver.errors import PlanError
from skyfx.tracing.capture import Capture, capture
from skyfx.tracing.tensor_binding import rebind

__all__: list[str] = ["Splitter", "captured_for", "check_plan"]


@dataclass(slots=True)
class Splitter:
    """Splits a model; what it is called with is what `runtime.pipeline` asks for.

    Attributes:
        planned: the capture that the plan is for, until the first split, which is of it.
        owners: the stage of each parameter and buffer seen so far; there it stays.
        moving: at the first split, brings values to where the owners say they are from now on, and
            returns which tensors others have taken the place of.
    """

    model: nn.Module
    plan: Plan
    places: Sequence[LocalDevice | None]
    on_cpu: Sequence[bool]
    planned: Capture | None
    weights: Weights | None = None
    owners: dict[str, int] = field(default_factory=dict)
    moving: Callable[[Mapping[str, int]], Mapping[int, Tensor]] | None = None

    def __call__(self, microbatch: Batch, training: bool) -> StagedModel:
        """The stages for micro-batches like this one."""
        captured, self.planned = self.planned, None
        if captured is None:
            captured = captured_for(self.model, microbatch, training=training)
        graph = to_planner_graph(captured)
        stage_of = match(captured, graph, self.plan, self.owners)
        for node, stage in stage_of.items():
            self.owners |= dict.fromkeys(owned(captured, node), stage)
        moving, self.moving = self.moving, None
        if moving is not None:
            rebind(captured.module, moving(self.owners))
        place_tensors(self.model, captured.module, self.owners, self.places, self.weights)
        return split(captured, graph, stage_of, self.places, self.on_cpu)


def captured_for(model: nn.Module, microbatch: Batch, *, training: bool) -> Capture:
    """Capture the model, on the meta device if some of it has no values, or none any more."""
    if any(x.is_meta for x in model.parameters()):
        microbatch = microbatch.to(torch.device("meta"))
    return capture(model, microbatch, training=training)


def check_plan(plan: Plan, captured: Capture, devices: Sequence[str]) -> None:
    """Refuse a plan for another model or other devices.

    Raises:
        PlanError: says which, and what to do.
    """
    for stage in plan.stages:
        if stage.device not in devices:
            raise PlanError(
                f"the plan uses device {stage.device!r}, the devices given are "
                f"{', '.join(devices)}: give the devices that it was made for, or plan anew"
            )
    if plan.live is not None and (fault := deadlock_reason(plan.live)):
        raise PlanError(f"the plan's stages would wait for each other: {fault}. Plan anew")
    graph = to_planner_graph(captured)
    ids, planned = {node.id for node in graph.nodes}, set(plan.stage_of())
    if ids != planned:
        one = min(ids ^ planned)
        raise PlanError(
            f"the plan is for another graph ({plan.graph.name!r}): {len(ids & planned)} of the "
            f"model's {len(ids)} nodes are in it, {one!r} is only in the "
            f"{'model' if one in ids else 'plan'}. Plan this model anew, in this mode"
        )
    if plan.graph.structure not in (None, graph.structure()):
        raise PlanError(
            f"the plan is for another graph ({plan.graph.name!r}): its nodes have the same names "
            "as this model's, but other operators, edges or parameter sizes. Plan this model anew"
        )
