"""The properties of an operator's call that its cost depends on."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from skyfx.runtime import pytree

T = TypeVar("T")


def signature(target: Any, args: Any, kwargs: Any, needs: Sequence[bool]) -> tuple[str, ...]:
    """The properties that a call's cost depends on: operator, shapes, strides, dtypes, constants.

    `needs` is whether each tensor requires a gradient.
    """
    following = iter(needs)

    def describe(leaf: Any) -> str:
        if isinstance(leaf, Tensor):
            kind = isinstance(leaf, nn.Parameter), next(following)
            return f"{tuple(leaf.shape)} {leaf.stride()} {leaf.dtype} {kind}"
        if isinstance(leaf, torch.device):
            return leaf.type
        return _of_a_module(leaf) if isinstance(leaf, nn.Module) else repr(leaf)

    leaves, spec = pytree.tree_flatten((args, kwargs))
    name = _of_a_module(target) if isinstance(target, nn.Module) else str(target)
    return (name, str(spec), *map(describe, leaves))


def _of_a_module(module: nn.Module) -> str:
    return f"module {id(module)}"


def of_tensors(node: fx.Node, of: Callable[[fx.Node], Sequence[T]]) -> list[T]:
    """The results of `of` for the tensors among a node's arguments.

    They are in the order of `needs` and `CallCost.saves_inputs`.
    """
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    return [x for leaf in leaves if isinstance(leaf, fx.Node) for x in of(leaf)]
