"""Moves a captured graph to a device: its tensors, and the devices in its operators' arguments."""

import copy
from typing import Any

import torch
from torch import fx

from skyfx.runtime import pytree
from skyfx.tracing.node_names import graphs_in
from skyfx.tracing.torch_internals import any_attribute_name


def copy_to(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """The graph with its tensors on the device; itself if all of them are there."""
    nodes = [node for part in graphs_in(module) for node in part.graph.nodes]
    leaves = pytree.tree_leaves([(node.args, node.kwargs) for node in nodes])
    named = {x for x in leaves if isinstance(x, torch.device)}
    if {x.device for x in (*module.parameters(), *module.buffers())} | named <= {device}:
        return module
    with any_attribute_name():
        moved = copy.deepcopy(module).to(device)
        for part in graphs_in(moved):
            for node in part.graph.nodes:
                node.args = with_device(node.args, device)
                node.kwargs = with_device(node.kwargs, device)
            part.recompile()
    return moved


def with_device(arguments: Any, device: torch.device) -> Any:
    """The arguments of a node, with this device instead of the one of the capture."""
    return pytree.tree_map(lambda x: device if isinstance(x, torch.device) else x, arguments)
