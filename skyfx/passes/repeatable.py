"""Which nodes may run again in backward, so that nothing of them has to be kept.

The second run has to find what the first one found, and must leave nothing behind:

    torch's own operators       yes, also random ones, which draw the same numbers again
    code that stays whole       no: it may do more than return values
    writes to a value           with all nodes that touch it (they share a colocation label)
    writes to a buffer          yes where it is small: the second run writes to a copy of it, as it
                                was before the first one
"""

from collections.abc import Hashable

from torch import Tensor, fx, nn

from skyfx.passes.aliasing import Storages
from skyfx.tracing.capture import Capture
from skyfx.tracing.effects.backward_values import is_for_backward
from skyfx.tracing.node_names import original_name
from skyfx.tracing.torch_internals import schema_of

LARGEST_COPY = 2**16
"""Bytes of a written buffer of which a copy is kept for each micro-batch in flight."""


def repeatable_nodes(captured: Capture) -> frozenset[fx.Node]:
    """The nodes of a capture that may run again."""
    graph = captured.module.graph
    storages = Storages(graph.nodes)
    fixed = set[Hashable]()  # what no second run may read or write
    for read in graph.find_nodes(op="get_attr"):
        value = captured.attribute(read)
        if isinstance(value, Tensor) and not _can_be_copied(value):
            fixed |= storages.of(read) & storages.written
        if original_name(str(read.target)) in captured.assigned.names:
            fixed |= storages.of(read)
    return frozenset(
        node
        for node in captured.ids
        if _is_pure(node) and not any(fixed & storages.of(x) for x in (node, *node.all_input_nodes))
    )


def _can_be_copied(value: Tensor) -> bool:
    return not isinstance(value, nn.Parameter) and value.nbytes <= LARGEST_COPY


def _is_pure(node: fx.Node) -> bool:
    """Whether it does no more than its schema says."""
    schema = schema_of(node)
    if node.op != "call_function" or is_for_backward(node):
        return False
    if schema is None:
        return getattr(node.target, "__module__", "") == "_operator"  # of a tuple, or of numbers
    given = {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)} | node.kwargs
    return bool(schema.name.startswith("aten::")) and given.get("generator") is None
