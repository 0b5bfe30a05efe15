"""Putting a captured graph on a device: its tensors, and the devices that its operators name."""

import copy
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

__all__: list[str] = ["copy_to", "with_device"]


def copy_to(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """The graph with its tensors on the device: itself where they are there already."""
    tensors = [*module.parameters(), *module.buffers()]
    if device.type == "cpu" and all(x.device.type == "cpu" for x in tensors):
        return module
    moved = copy.deepcopy(module).to(device)
    for node in moved.graph.nodes:
        node.args = with_device(node.args, device)
        node.kwargs = with_device(node.kwargs, device)
    moved.recompile()
    return moved


def with_device(arguments: Any, device: torch.device) -> Any:
    """The arguments of a node, with this device in place of the one it was captured on."""
    return pytree.tree_map(
        lambda leaf: device if isinstance(leaf, torch.device) else leaf, arguments
    )
