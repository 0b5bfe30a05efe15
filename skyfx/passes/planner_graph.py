"""A captured model as the planner's graph, before it is measured: nodes, edges and sizes."""

from typing import Any

from torch import Tensor

from skyfx.passes.aliasing import colocation
from skyfx.passes.repeatable import repeatable_nodes
from skyfx.runtime import pytree
from skyfx.solver.core.graph import Graph, Node
from skyfx.tracing.capture import Capture
from skyfx.tracing.node_names import module_of, op_name


def to_planner_graph(captured: Capture) -> Graph:
    """The nodes that a plan for this model places, without times and saved bytes."""
    labels = colocation(captured.module.graph, captured.ids)
    repeatable = repeatable_nodes(captured) if captured.training else frozenset()
    nodes = [
        Node(
            id=name,
            op=op_name(node),
            module=module_of(node) or None,
            inputs=tuple(captured.ids[x] for x in node.all_input_nodes if x in captured.ids),
            forward_s={},
            backward_s={},
            output_bytes=num_bytes(node.meta.get("val")),
            gradient_bytes=0,
            parameter_bytes=num_bytes(tensors),
            trainable_bytes=num_bytes([x for x in tensors if x.requires_grad]),
            saved_bytes=0,
            colocate=labels.get(node),
            repeatable=node in repeatable,
        )
        for node, name in captured.ids.items()
        for tensors in [[captured.attribute(x) for x in captured.tensors_of(node)]]
    ]
    return Graph(
        name=captured.name,
        microbatch_size=captured.microbatch.batch_size,
        nodes=tuple(nodes),
        outputs=tuple(dict.fromkeys(captured.ids[node] for node in captured.output_nodes)),
    )


def num_bytes(value: Any) -> int:
    """Bytes of a tensor, or of all tensors in a nesting, when they are sent: contiguous."""
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    parts = [part for x in tensors for part in pytree.parts_of(x)]
    return sum(part.numel() * part.element_size() for part in parts)
