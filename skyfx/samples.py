"""Made-up values for a graph whose model has none, or that are needed out of their turn.

Floats lie between 0 and 1, where every operator is defined; integers are 0, which every table has;
booleans are true, so that a mask hides nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from skyfx.placing import copy_to, with_device

__all__: list[str] = ["arguments", "sample"]


def sample(like: Tensor, device: torch.device) -> Tensor:
    """A tensor of the same shape, strides and dtype."""
    pairs = list(zip(like.shape, like.stride(), strict=True))
    expanded = [size > 1 and stride == 0 for size, stride in pairs]
    base = torch.empty_strided(
        [1 if x else size for (size, _), x in zip(pairs, expanded, strict=True)],
        [stride for _, stride in pairs],
        dtype=like.dtype,
        device=device,
    )
    if base.is_floating_point() or base.is_complex():
        base.fill_(0.5) if base.is_complex() else base.uniform_()
    else:
        base.fill_(like.dtype == torch.bool)
    made = base.expand(like.shape) if any(expanded) else base
    return nn.Parameter(made, like.requires_grad) if isinstance(like, nn.Parameter) else made


def arguments(
    node: fx.Node, tensors: Mapping[fx.Node, Any], device: torch.device
) -> tuple[Any, Any]:
    """Positional and keyword arguments for a node.

    Args:
        node: the operator.
        tensors: what the graph's `get_attr` nodes read: parameters, buffers, regions.
        device: where the tensors are to be.
    """

    def made(read: fx.Node) -> Any:
        value = tensors.get(read, read.meta.get("val"))
        if isinstance(value, fx.GraphModule):
            return copy_to(value, device)
        return pytree.tree_map(lambda x: sample(x, device) if isinstance(x, Tensor) else x, value)

    args, kwargs = with_device(fx.map_arg((node.args, node.kwargs), made), device)
    if node.target is torch.ops.aten.embedding.default:
        table, rows = args[0], torch.empty_like(args[1])
        args = (table, rows.random_(len(table)), *args[2:])
    return args, kwargs
