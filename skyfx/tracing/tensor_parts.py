"""Reads of the tensors that a parameter of a subclass consists of, such as quantised weights.

torch.export has them all at the graph's beginning. Next to what reads them, a stage holds the
parameters of its own operators.
"""

import torch
from torch import fx

_READ = torch.ops.export.access_subclass_inner_tensor.default


def reads_part(node: fx.Node) -> bool:
    """Whether the node reads a part of a parameter."""
    return node.target is _READ


def move_to_readers(graph: fx.Graph) -> None:
    """Put each read of a part just before the first node that reads it."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.find_nodes(op="call_function", target=_READ):
        if node.users:
            min(node.users, key=position.__getitem__).prepend(node)
