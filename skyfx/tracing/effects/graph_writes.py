"""What the operators of a captured graph write to."""

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from skyfx.runtime import pytree
from skyfx.tracing.leaves.leaf_calls import leaf_of
from skyfx.tracing.torch_internals import schema_of, storage_id, written_arguments

_NORMS = {torch.ops.aten.batch_norm.default: 5, torch.ops.aten.instance_norm.default: 5}
"""Operators that update their running statistics (arguments 3 and 4) where this argument is true;
their schemas do not say so."""


def written_inputs(node: fx.Node) -> Iterator[fx.Node]:
    """The inputs that the node writes to."""
    if leaf := leaf_of(node):
        yield from (node.args[i] for i in leaf.seen.writes)  # type: ignore[misc]
    if node.op != "call_function":
        return
    schema = schema_of(node)
    if schema is None:  # a subgraph, such as the body of a `with torch.no_grad()`
        inner = [x for part in subgraphs_of(node) for x in part.graph.nodes]
        written = {s for x in inner for y in written_inputs(x) for s in storages_of(y)}
        if written:
            found = [x for x in node.all_input_nodes if written & set(storages_of(x))]
            yield from found or node.all_input_nodes
        return
    if node.target in _NORMS and node.args[_NORMS[node.target]]:
        yield from (arg for arg in node.args[3:5] if isinstance(arg, fx.Node))
    for value in written_arguments(node):
        yield from (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, fx.Node))


def subgraphs_of(node: fx.Node) -> Iterator[fx.GraphModule]:
    """The subgraphs that the node runs, such as the body of a `with torch.no_grad()`."""
    for arg in node.all_input_nodes:
        if arg.op == "get_attr" and arg.graph.owning_module is not None:
            value = getattr(arg.graph.owning_module, str(arg.target), None)
            if isinstance(value, fx.GraphModule):
                yield value


def storages_of(node: fx.Node) -> Iterator[int]:
    """The storages of its value among the fake tensors."""
    for leaf in pytree.tree_leaves(node.meta.get("val")):
        if isinstance(leaf, Tensor):
            yield storage_id(leaf)
