"""Splitting a model as a plan says, for each mode and shape of micro-batch that comes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import fx, nn

from skyfx.devices.host_resources import free_bytes
from skyfx.partitioning.parameter_placement import place_tensors
from skyfx.partitioning.plan_matching import match, numbered_segments, owned
from skyfx.partitioning.stage_builder import split
from skyfx.partitioning.weights import Weights
from skyfx.partitioning.whole_model import whole_model
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.distributed.process_group import ProcessGroup
from skyfx.runtime.execution.stage import StagedModel
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Plan
from skyfx.solver.core.units import size
from skyfx.solver.errors import CaptureError, PlanError
from skyfx.tracing.capture import Capture, capture
from skyfx.tracing.leaves.leaf_sites import NOWHERE, Places
from skyfx.tracing.tensor_binding import named_tensors, rebind

logger = logging.getLogger(__name__)

SHARE = 0.5
"""Of the free memory that the tensors of other processes may take for a while."""


@dataclass(slots=True)
class Splitter:
    """Splits a model into the stages of a plan; the runtime calls it as its `SplitFn`.

    Attributes:
        devices: the device of each stage, `(num_stages,)`; None in another process.
        on_cpu: whether each stage runs on a CPU, here or elsewhere, `(num_stages,)`.
        weights: where to read tensors that have no values.
        group: the processes that split the model together.
        owners: the stage of each parameter and buffer seen so far, by its name; it stays there.
        places: where the first capture has leaves; later ones begin with them.
        latest: the capture that was split last.
        trained_bytes: of the parameters that trained in the capture before, if one trained.
    """

    model: nn.Module
    plan: Plan
    devices: Sequence[LocalDevice | None]
    on_cpu: Sequence[bool]
    weights: Weights | None = None
    group: ProcessGroup = field(default_factory=ProcessGroup.alone)
    owners: dict[str, int] = field(default_factory=dict)
    places: Places = NOWHERE
    latest: Capture | None = None
    trained_bytes: float | None = None

    def __call__(self, microbatch: Batch, training: bool) -> StagedModel:
        """Capture the model for micro-batches like this one, and split it."""
        return self.split(self.capture(microbatch, training=training))

    def capture(self, microbatch: Batch, *, training: bool) -> Capture:
        """Capture the model, with the leaves that the first capture has.

        Shapes are enough for most models. The others are captured with the values of all processes.
        """
        captured: list[Capture] = []

        def attempt() -> str:
            try:
                found = capture(self.model, microbatch, training=training, places=self.places)
            except CaptureError:
                tensors = named_tensors(self.model).values()
                needed = sum(x.nbytes for x in tensors if x.is_meta)
                if self.group.size == 1 or needed > SHARE * free_bytes(torch.device("cpu")):
                    raise
                return "needs values"
            captured.append(found)
            return ""

        if any(self.group.run_together(attempt)):
            captured.clear()
            with whole_model(self.model, self.group) as whole:
                again = partial(capture, self.model, microbatch, training=training)
                captured.append(self.group.barrier_after(partial(again, places=self.places)))
            rebind(captured[0].module, whole.back)
        return captured[0]

    def split(self, captured: Capture) -> StagedModel:
        """Put the model's tensors on the devices of their stages, and cut the capture.

        Where a node reads tensors that live in earlier stages, they are sent to it.
        """
        graph = to_planner_graph(captured)
        try:
            stage_of = self.assign(captured, graph)
        except PlanError:
            captured = captured.with_apart(self.owners)
            graph = to_planner_graph(captured)
            stage_of = self.assign(captured, graph)
            logger.info("%s sends parameters or buffers between stages", captured.name)
        self.latest = captured
        if captured.training:
            self._compare_trained(sum(node.trained_bytes for node in graph.nodes))
        if self.places == NOWHERE:
            self.places = captured.places
        place_tensors(self.model, captured.module, self.owners, self.devices, self.weights)
        segments = numbered_segments(captured, graph, stage_of, self.plan)
        return split(captured, graph, stage_of, self.devices, self.on_cpu, segments)

    def _compare_trained(self, trained_bytes: float) -> None:
        """Say so where more trains than was planned for."""
        more = trained_bytes - (trained_bytes if self.trained_bytes is None else self.trained_bytes)
        if more > 0:
            logger.warning(
                "%s of parameters that were frozen train now. The plan's memory has no room for "
                "their gradients and optimizer state: partition again if memory is short",
                size(more),
            )
        self.trained_bytes = trained_bytes

    def assign(self, captured: Capture, graph: Graph) -> Mapping[fx.Node, int]:
        """The stage of each node of a capture; its tensors get their owners."""
        stage_of = match(captured, graph, self.plan, self.owners)
        for node, stage in stage_of.items():
            self.owners |= dict.fromkeys(owned(captured, node), stage)
        return stage_of
