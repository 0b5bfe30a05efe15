"""From a plan and a capture to the stages of a pipeline.

Each stage gets copies of its nodes, in their order, with the tensors of the model themselves. Every
value that is alive at a boundary is relayed through it:

    receives            stage k                          sends
    x, mask   -->   y = f(x, w)    z = g(y, mask)   -->  z, mask      w: a parameter of the stage

`torch.fx.passes.split_module` would rename submodules and parameters, and would send values past
stages that do not read them. A plan prices relaying, so the stages relay.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from skyfx.passes.aliasing import written_by
from skyfx.passes.rng_advance import advances, is_random
from skyfx.passes.subgraph import subgraph
from skyfx.runtime.device import LocalDevice
from skyfx.runtime.execution.stage import Stage, StagedModel
from skyfx.runtime.transport.message import TensorSpec
from skyfx.solver.core.graph import Graph
from skyfx.solver.costs.cost_model import crossings
from skyfx.tracing.capture import Capture

StageOf = Mapping[fx.Node, int]
Places = Sequence[LocalDevice | None]


def split(
    captured: Capture,
    graph: Graph,
    stage_of: StageOf,
    places: Places,
    on_cpu: Sequence[bool],
    segments: Mapping[fx.Node, int] | None = None,
) -> StagedModel:
    """Cut a capture into stages.

    Args:
        captured: the model for the mode and shapes to run.
        graph: the planner's graph of it.
        stage_of: the stage of each placed node, from `match`.
        places: the device of each stage, `(num_stages,)`; None in another process.
        on_cpu: whether each stage runs on a CPU, `(num_stages,)`.
        segments: the segment of each node that is recomputed in backward.
    """
    between = boundaries(captured, graph, stage_of, len(places))
    stages = {}
    for k, place in enumerate(places):
        if place is not None:
            part = [node for node in captured.ids if stage_of[node] == k]
            stages[k] = stage(captured, part, place, between[k], between[k + 1], segments=segments)
    return StagedModel(
        stages=stages,
        outputs=captured.outputs,
        assigned=captured.assigned,
        hooks=captured.hooks,
        returned=_forms(captured.output_nodes),
        advances=advances(captured, lambda node: on_cpu[stage_of[node]]),
        first=captured.first,
    )


def boundaries(
    captured: Capture, graph: Graph, stage_of: StageOf, num_stages: int
) -> list[list[fx.Node]]:
    """The values at each boundary, `(num_stages + 1,)`: from the model's inputs to its outputs.

    The values between stages are those that the cost model prices.
    """
    node_of = {name: node for node, name in captured.ids.items()}
    stage_of_id = {captured.ids[node]: stage for node, stage in stage_of.items()}
    priced = crossings(graph, stage_of_id, num_stages)
    inner = [[node_of[value.id] for value in crossing] for crossing in priced]
    inputs = captured.module.graph.find_nodes(op="placeholder")
    return [inputs, *inner, captured.output_nodes]


def stage(
    captured: Capture,
    part: Sequence[fx.Node],
    place: LocalDevice,
    received: Sequence[fx.Node],
    sent: Sequence[fx.Node],
    tensors: Mapping[fx.Node, Any] | None = None,
    segments: Mapping[fx.Node, int] | None = None,
) -> Stage:
    """A stage of some nodes; the arguments are those of `subgraph`."""
    return Stage(
        local_device=place,
        module=subgraph(captured, part, received, sent, place.device, tensors, segments),
        is_random=any(map(is_random, part)),
        receives=_forms(received),
        written=written_by(part, received),
    )


def _forms(nodes: Sequence[fx.Node]) -> tuple[TensorSpec, ...]:
    values = [node.meta.get("val") for node in nodes]
    return tuple(TensorSpec.of(value) for value in values if isinstance(value, Tensor))
