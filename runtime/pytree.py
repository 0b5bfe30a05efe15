"""Nested values taken apart: torch's pytrees, and objects as well, which those leave whole.

Objects are dataclasses, and what gives tensors by keys without being a dict, such as the batches of
torch_geometric. torch's pytrees are a private module, which is imported here alone.
"""

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

TreeSpec = _pytree.TreeSpec
tree_flatten, tree_unflatten = _pytree.tree_flatten, _pytree.tree_unflatten
tree_leaves, tree_map = _pytree.tree_leaves, _pytree.tree_map
register_node = _pytree.register_pytree_node

register_node(
    Counter,
    lambda counts: (list(counts.values()), tuple(counts)),
    lambda values, keys: Counter(dict(zip(keys, values, strict=True))),
    flatten_with_keys_fn=lambda counts: (
        [(_pytree.MappingKey(key), value) for key, value in counts.items()],
        tuple(counts),
    ),
)

Keys = tuple[str | int, ...]
"""The keys that lead to a value; the indices of lists and tuples are numbers."""

MAX_DEPTH = 4
"""How deep an object is looked into for what it holds beside its keys."""


class _Shell:
    """What is left of an object without its children; equal ones hold the same beside them."""

    def __init__(self, value: Any, keys: Collection[str]) -> None:
        self.kind, self.by_keys = type(value), _is_keyed(value)
        self.value: Any = None
        text = ""
        if self.by_keys:
            self.value = copy.copy(value)
            for key in keys:
                self.value[key] = None
            text = _told(getattr(self.value, "__dict__", {}), MAX_DEPTH)
        self._text = f"{self.kind.__module__}.{self.kind.__qualname__}({text})"

    def filled(self, children: Mapping[str, Any]) -> Any:
        """The object with these children."""
        if self.by_keys:
            made = copy.copy(self.value)
            for key, child in children.items():
                made[key] = child
            return made
        made = object.__new__(self.kind)  # not by `__init__`, which may change its arguments
        for name, child in children.items():
            object.__setattr__(made, name, child)
        return made

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return self._text


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    """An object as a pytree node: its fields, or what its keys give, are its children."""

    shell: _Shell
    fields: dict[str, Any]


_pytree.register_pytree_node(
    _Opened,
    lambda opened: (list(opened.fields.values()), (opened.shell, tuple(opened.fields))),
    lambda values, context: _Opened(context[0], dict(zip(context[1], values, strict=True))),
    flatten_with_keys_fn=lambda opened: (
        [(_pytree.MappingKey(name), value) for name, value in opened.fields.items()],
        (opened.shell, tuple(opened.fields)),
    ),
)


def flatten(value: Any) -> tuple[list[Any], TreeSpec]:
    """The leaves of a value, and their nesting."""
    return tree_flatten(_open(value))


def flatten_with_paths(value: Any) -> tuple[list[tuple[Keys, Any]], TreeSpec]:
    """Each leaf with the keys that lead to it, and the nesting.

    Leaves have their numbers for keys where a type is registered without keys, as by diffusers.
    """
    opened = _open(value)
    try:
        pairs, spec = _pytree.tree_flatten_with_path(opened)
    except ValueError:
        leaves, spec = tree_flatten(opened)
        return [((i,), leaf) for i, leaf in enumerate(leaves)], spec
    return [(tuple(map(_key, path)), leaf) for path, leaf in pairs], spec


def unflatten(leaves: Any, spec: TreeSpec) -> Any:
    """The value of this nesting with these leaves."""
    return _close_opened(tree_unflatten(list(leaves), spec))


def replace_nodes(value: Any, paths: Collection[Keys], function: Callable[[Any], Any]) -> Any:
    """The same value, with what the function makes of the nodes at these paths."""

    def replaced(node: Any, path: Keys) -> Any:
        if path in paths:
            return function(node)
        if not any(one[: len(path)] == path for one in paths):
            return node
        pairs, spec = _pytree.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
        return tree_unflatten([replaced(x, (*path, *map(_key, keys))) for keys, x in pairs], spec)

    return _close_opened(replaced(_open(value), ()))


def is_object(value: Any) -> bool:
    """Whether it is an object that is taken apart."""
    return _is_dataclass(value) or _is_keyed(value)


def _key(key: Any) -> str | int:
    if isinstance(key, _pytree.SequenceKey):
        return key.idx
    return str(getattr(key, "key", getattr(key, "name", key)))


def _open(value: Any) -> Any:
    def opened(leaf: Any) -> Any:
        if _is_dataclass(leaf):
            names = [field.name for field in dataclasses.fields(leaf) if hasattr(leaf, field.name)]
            fields = {name: _open(getattr(leaf, name)) for name in names}
        elif _is_keyed(leaf):
            fields = {key: _open(leaf[key]) for key in sorted(leaf.keys())}
        else:
            return leaf
        return _Opened(_Shell(leaf, fields), fields)

    return tree_map(opened, value)


def _is_dataclass(value: Any) -> bool:
    """Whether it is a dataclass object with tensors; others, such as configs, stay whole."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return False
    held = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return any(isinstance(x, Tensor) or _is_dataclass(x) for x in tree_leaves(held))


def _is_keyed(value: Any) -> bool:
    """Whether it is an object that gives and takes tensors by keys, which are strings."""
    needed = ("keys", "__getitem__", "__setitem__")
    if isinstance(value, (type, Tensor, nn.Module)):
        return False
    if not all(callable(getattr(type(value), name, None)) for name in needed):
        return False
    keys = list(value.keys())
    return all(isinstance(key, str) for key in keys) and any(
        isinstance(x, Tensor) for x in tree_leaves([value[key] for key in keys])
    )


def _told(value: Any, depth: int) -> str:
    """What a value holds, as text."""
    if isinstance(value, Tensor):
        return f"{value.dtype}{value.tolist()}"
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return repr(value)
    if depth and isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_told(x, depth - 1)}" for key, x in value.items()) + "}"
    if depth and isinstance(value, list | tuple):
        return "[" + ", ".join(_told(x, depth - 1) for x in value) + "]"
    if depth and not isinstance(value, type) and hasattr(value, "__dict__"):
        return _told(vars(value), depth - 1)
    return type(value).__name__


def _close_opened(value: Any) -> Any:
    def closed(node: Any) -> Any:
        if not isinstance(node, _Opened):
            return node
        return node.shell.filled({key: _close_opened(x) for key, x in node.fields.items()})

    return tree_map(closed, value, is_leaf=lambda node: isinstance(node, _Opened))


def inner_tensors(tensor: Tensor) -> dict[str, Tensor]:
    """The tensors that one of a subclass consists of, such as quantised weights and their scales.

    Torch's own protocol of such subclasses gives them by name. Other tensors have none.
    """
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return {} if flatten is None else {name: getattr(tensor, name) for name in flatten()[0]}


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold its memory: itself, or those within one of a subclass."""
    inner = inner_tensors(tensor).values()
    return [part for each in inner for part in parts_of(each)] or [tensor]


def empty_copy(tensor: Tensor) -> Tensor:
    """A tensor of the same kind, shape and type on the CPU, to be filled part by part."""
    inner: Any = {name: empty_copy(part) for name, part in inner_tensors(tensor).items()}
    if not inner:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    whole: Any = tensor
    made = type(whole).__tensor_unflatten__
    return made(inner, whole.__tensor_flatten__()[1], tensor.shape, tensor.stride())  # type: ignore[no-any-return]
