"""Splitting a model the way a plan says, for each mode and shape of micro-batch that comes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from skyfx.partitioning.parameter_placement import place_tensors
from skyfx.partitioning.plan_matching import match, owned
from skyfx.partitioning.stage_builder import split
from skyfx.partitioning.weights import Weights
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.execution.microbatch import Batch
from skyfx.runtime.execution.step import StagedModel
from skyfx.solver.core.plan import Plan
from skyfx.tracing.capture import Capture, capture
from skyfx.tracing.tensor_binding import rebind

__all__: list[str] = ["Splitter"]


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
            captured = capture(self.model, microbatch, training=training)
        graph = to_planner_graph(captured)
        stage_of = match(captured, graph, self.plan, self.owners)
        for node, stage in stage_of.items():
            self.owners |= dict.fromkeys(owned(captured, node), stage)
        moving, self.moving = self.moving, None
        if moving is not None:
            rebind(captured.module, moving(self.owners))
        place_tensors(self.model, captured.module, self.owners, self.places, self.weights)
        return split(captured, graph, stage_of, self.places, self.on_cpu)
