"""Nested values taken apart: torch's pytrees, and dataclasses as well, which those leave whole.

torch's pytrees are a private module, which is imported here alone.
"""

import dataclasses
from typing import Any

from torch import Tensor
from torch.utils import _pytree

TreeSpec = _pytree.TreeSpec
tree_flatten, tree_unflatten = _pytree.tree_flatten, _pytree.tree_unflatten
tree_leaves, tree_map = _pytree.tree_leaves, _pytree.tree_map


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    """A dataclass object as a pytree node: its fields are its children."""

    of: type[Any]
    fields: dict[str, Any]


_pytree.register_pytree_node(
    _Opened,
    lambda opened: (list(opened.fields.values()), (opened.of, tuple(opened.fields))),
    lambda values, context: _Opened(context[0], dict(zip(context[1], values, strict=True))),
    flatten_with_keys_fn=lambda opened: (
        [(_pytree.MappingKey(name), value) for name, value in opened.fields.items()],
        (opened.of, tuple(opened.fields)),
    ),
)


def flatten(value: Any) -> tuple[list[Any], TreeSpec]:
    """The leaves of a value, and their nesting."""
    return tree_flatten(_open(value))


def flatten_with_names(value: Any) -> list[tuple[list[str], Any]]:
    """Each leaf with the keys, indices and fields that lead to it."""
    return [
        ([str(getattr(key, "idx", getattr(key, "key", key))) for key in path], leaf)
        for path, leaf in _pytree.tree_flatten_with_path(_open(value))[0]
    ]


def unflatten(leaves: Any, spec: TreeSpec) -> Any:
    """The value of this nesting with these leaves."""
    return _close(tree_unflatten(list(leaves), spec))


def _open(value: Any) -> Any:
    def opened(leaf: Any) -> Any:
        if not _is_open(leaf):
            return leaf
        names = [field.name for field in dataclasses.fields(leaf) if hasattr(leaf, field.name)]
        return _Opened(type(leaf), {name: _open(getattr(leaf, name)) for name in names})

    return tree_map(opened, value)


def _is_open(value: Any) -> bool:
    """Whether it is a dataclass object with tensors; others, such as configs, stay whole."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return False
    held = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return any(isinstance(x, Tensor) or _is_open(x) for x in tree_leaves(held))


def _close(value: Any) -> Any:
    def closed(node: Any) -> Any:
        if not isinstance(node, _Opened):
            return node
        made = object.__new__(node.of)  # not by `__init__`, which may change its arguments
        for name, field in node.fields.items():
            object.__setattr__(made, name, _close(field))
        return made

    return tree_map(closed, value, is_leaf=lambda node: isinstance(node, _Opened))
