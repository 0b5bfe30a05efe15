"""Whether a plan is for a model and its devices, and the stage of each node of the model."""

from collections.abc import Mapping, Sequence

from torch import fx

from skyfx.passes.planner_graph import to_planner_graph
from skyfx.solver.core.graph import Graph
from skyfx.solver.core.plan import Plan
from skyfx.solver.core.schedule import deadlock_reason
from skyfx.solver.costs.recomputation import segment_faults
from skyfx.solver.errors import PlanError
from skyfx.tracing.capture import Capture
from skyfx.tracing.node_names import original_name


def match(
    captured: Capture, graph: Graph, plan: Plan, owners: Mapping[str, int]
) -> dict[fx.Node, int]:
    """The stage of each node of a capture, which may differ from the one that was planned.

    A model has other nodes in eval mode than in training (batch norm counts its batches only
    there), and may call its modules in another order. Parameters stay where they are, nodes of
    equal ids go where the plan has them, and the others go with what they read.

    Args:
        captured: the model for the mode and shapes to run.
        graph: its planner graph.
        plan: made from a capture of the same model.
        owners: the stage of each parameter and buffer that has one, by its original name.

    Raises:
        PlanError: the capture cannot be split by the plan.
    """
    planned = plan.stage_of()
    found: dict[fx.Node, int] = {}
    of_label: dict[str, int] = {}
    for node, described in zip(captured.ids, graph.nodes, strict=True):
        name, label = described.id, described.colocate
        earliest = max((found[x] for x in node.all_input_nodes if x in found), default=0)
        fixed = {owners[tensor] for tensor in owned(captured, node) if tensor in owners}
        if label is not None and label in of_label:
            fixed.add(of_label[label])
        stage = min(fixed, default=max(planned.get(name, earliest), earliest))
        if stage < earliest or len(fixed) > 1:
            raise PlanError(
                f"the plan cannot be used in {'training' if captured.training else 'eval'} mode: "
                f"{name!r} belongs to stage {sorted(fixed)}, its inputs are made in stage "
                f"{earliest}. Partition the model for this mode separately"
            )
        found[node] = stage
        if label is not None:
            of_label[label] = stage
    return found


def numbered_segments(
    captured: Capture, graph: Graph, stage_of: Mapping[fx.Node, int], plan: Plan
) -> dict[fx.Node, int]:
    """The segment of each node of a capture that is recomputed in backward.

    What cannot be recomputed in this capture is kept, as in eval mode.
    """
    node_of = {name: node for node, name in captured.ids.items()}
    found: dict[fx.Node, int] = {}
    for number, segment in enumerate(plan.segments()):
        here = [name for name in segment if name in node_of]
        for k in {stage_of[node_of[name]] for name in here}:
            stage = [name for node, name in captured.ids.items() if stage_of[node] == k]
            if not any(segment_faults(graph, stage, [here])):
                found |= {node_of[name]: number for name in here}
    return found


def owned(captured: Capture, node: fx.Node) -> list[str]:
    """Original names of the parameters and buffers that live with a node."""
    return [original_name(str(read.target)) for read in captured.tensors_of(node)]


def check_plan(plan: Plan, captured: Capture, devices: Sequence[str]) -> None:
    """Refuse a plan for another model or other devices.

    Raises:
        PlanError: which of them, and the cure.
    """
    for stage in plan.stages:
        if stage.device not in devices:
            raise PlanError(
                f"the plan uses device {stage.device!r}, the devices given are "
                f"{', '.join(devices)}: pass the devices that it was made for, or plan again"
            )
    if plan.live is not None and (fault := deadlock_reason(plan.live)):
        raise PlanError(f"the plan's schedule would deadlock: {fault}. Make a new plan")
    graph = to_planner_graph(captured)
    ids, planned = {node.id for node in graph.nodes}, set(plan.stage_of())
    if ids != planned:
        one = min(ids ^ planned)
        raise PlanError(
            f"the plan is for another graph ({plan.graph.name!r}): {len(ids & planned)} of the "
            f"model's {len(ids)} nodes are in it, {one!r} is only in the "
            f"{'model' if one in ids else 'plan'}. Plan this model again, in this mode"
        )
    for stage in plan.stages:
        for fault in segment_faults(graph, stage.nodes, stage.recompute):
            raise PlanError(f"the plan cannot be used: {fault}. Make a new plan")
    if plan.graph.structure not in (None, graph.structure()):
        raise PlanError(
            f"the plan is for another graph ({plan.graph.name!r}): its nodes have the same names "
            "as this model's, but other operators, edges or parameter sizes. Plan this model again"
        )
