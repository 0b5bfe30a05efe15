"""Synthetic values, for a model that has none or for nodes that run alone.

Floats lie between 0 and 1, where every operator is defined. Integers are 0, an index that every
table has. Booleans are true, so that a mask hides nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from skyfx.passes.device_transfer import copy_to, with_device
from skyfx.runtime import pytree
from skyfx.tracing.tensor_binding import in_place_of

MOST_BYTES = 2**28
"""The most bytes of one synthetic tensor."""

_ROWS: dict[Any, tuple[int, int]] = {
    torch.ops.aten.linear.default: (1, 3),
    torch.ops.aten.embedding.default: (0, 1),
}
"""Operators that take equal time per row of their arguments in this range."""


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
    return in_place_of(like, base.expand(like.shape) if any(expanded) else base)


def parts(node: fx.Node, tensors: Mapping[fx.Node, Any]) -> float:
    """Rows of a node's table per row of the synthetic one."""
    share, tables = _share(node, tensors), map(tensors.get, _tables(node))
    return max([1.0, *(len(x) / _rows(x, share) for x in tables if isinstance(x, Tensor))])


def _share(node: fx.Node, tensors: Mapping[fx.Node, Any]) -> int:
    """How many times larger than MOST_BYTES a node's table is, at least 1."""
    tables = [x for x in map(tensors.get, _tables(node)) if isinstance(x, Tensor)]
    return max([1, *(-(-x.numel() * x.element_size() // MOST_BYTES) for x in tables)])


def _rows(table: Tensor, share: int) -> int:
    return max(1, len(table) // share)


def _tables(node: fx.Node) -> list[fx.Node]:
    """The weight and the bias, whose rows give separate outputs."""
    first, last = _ROWS.get(node.target, (0, 0))
    return [x for x in node.args[first:last] if isinstance(x, fx.Node)]


def arguments(
    node: fx.Node, tensors: Mapping[fx.Node, Any], device: torch.device
) -> tuple[Any, Any]:
    """Positional and keyword arguments for a node.

    A table that is too large, such as a language model's head, has its first rows only.

    Args:
        node: the operator.
        tensors: what the graph's `get_attr` nodes read: parameters, buffers, subgraphs.
        device: the device of the tensors.
    """
    tables, share = _tables(node), _share(node, tensors)

    def made(read: fx.Node) -> Any:
        value = tensors.get(read, read.meta.get("val"))
        if read in tables and share > 1:
            value = in_place_of(value, value[: _rows(value, share)])
        if isinstance(value, fx.GraphModule):
            return copy_to(value, device)
        return pytree.tree_map(lambda x: sample(x, device) if isinstance(x, Tensor) else x, value)

    args, kwargs = with_device(fx.map_arg((node.args, node.kwargs), made), device)
    if node.target is torch.ops.aten.embedding.default:
        table, rows = args[0], torch.empty_like(args[1])
        args = (table, rows.random_(len(table)), *args[2:])
    return args, kwargs
