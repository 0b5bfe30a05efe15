"""What is changed in a graph as torch.export leaves it, before a plan places its nodes.

Parameters of a subclass, such as quantised weights, consist of several tensors, and torch.export
reads these at the graph's beginning. Next to what reads them, a stage holds the parameters of its
own operators.
"""

import torch
from torch import fx

from skyfx.tracing.node_names import graphs_in

_READ_PART = torch.ops.export.access_subclass_inner_tensor.default
_CHECK_DEVICE = torch.ops.aten._assert_tensor_metadata.default


def reads_part(node: fx.Node) -> bool:
    """Whether the node reads a part of a parameter."""
    return node.target is _READ_PART


def tidy(module: fx.GraphModule) -> None:
    """Remove checks that tie the graph to a device, and put reads of parts beside their readers."""
    for part in graphs_in(module):
        for node in part.graph.find_nodes(op="call_function", target=_CHECK_DEVICE):
            part.graph.erase_node(node)
        position = {node: i for i, node in enumerate(part.graph.nodes)}
        for node in part.graph.find_nodes(op="call_function", target=_READ_PART):
            if node.users:
                min(node.users, key=position.__getitem__).prepend(node)
        part.recompile()
