"""Values on a model's modules that a captured graph has fixed.

    self.temperature = 0.5        a number or a string
    self.dropout.p = 0.1          the same, on a submodule
    self.scale = torch.ones(8)    which tensor it is, or which function or other object
    self.config.scale = 2.0       plain values in an object, a list or a dict
    SCALE = 2.0                   the same beside the model, where its code reads it

Between two steps somebody may change them, and plain torch goes on with the new ones. Only those
count whose names the code of forward has: others are notes of whoever trains.
"""

from collections.abc import Collection, Mapping
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from skyfx.runtime.state.contents import PLAIN_TYPES
from skyfx.runtime.state.reachable_state import NOT_STATE, names_of, names_read_by, slots_read

_DEPTH = 3
_MANY = 1000
"""Items of a container that is only known by itself: it is read before each step."""

_OBJECTS = (FunctionType, BuiltinFunctionType, torch.Tensor)
"""Types of variables of which it matters which object they are."""


class _Same:
    """An object that equals itself alone; it is kept, so that no other one gets its `id`."""

    __slots__ = ("of",)

    def __init__(self, of: Any) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.of is other.of

    def __hash__(self) -> int:
        return id(self.of)


def fixed_values(model: nn.Module, but: Collection[str] = ()) -> dict[str, Any]:
    """What attributes of the model's modules hold, by name, to compare with `==`.

    Args:
        model: parameters, buffers, submodules and hooks are not among it.
        but: attributes that forward itself assigns.
    """
    read: dict[int, Any] = {}
    values = {}
    for path, module in model.named_modules():
        prefix, held = f"{path}." if path else "", vars(module)
        kind: Any = type(module)
        names: frozenset[str] = names_read_by(kind)
        if "forward" in held:  # replaced on this module alone
            names = names | names_of(held["forward"], kind)
        for name in held.keys() & names - NOT_STATE:
            if prefix + name not in but:
                values[prefix + name] = _fixed(held[name], read)
    return values


class ReadVariables:
    """What forwards read beside the model: globals, variables of closures, attributes of classes.

    Which those are is found out once; reading them is a look-up each.
    """

    def __init__(self, model: nn.Module) -> None:
        self._slots, self._keys = slots_read(model, (*PLAIN_TYPES, *_OBJECTS, dict))

    def values(self, but: Collection[str] = ()) -> dict[str, Any]:
        """What they hold now, as of `fixed_values`."""
        return {x.name: self._read(x.value) for x in self._slots if x.name not in but}

    def _read(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return (type(value), value) if isinstance(value, PLAIN_TYPES) else (_Same(value), None)
        plain = {x: y for x, y in value.items() if x in self._keys and isinstance(y, PLAIN_TYPES)}
        return {key: (type(one), one) for key, one in plain.items()}


def _fixed(value: Any, read: dict[int, Any]) -> Any:
    """The value of an attribute; `read` are objects that have been read, by their `id`s."""
    if isinstance(value, PLAIN_TYPES):
        return type(value), value
    if id(value) not in read:
        read[id(value)] = _Same(value), _parts(value, _DEPTH)
    return read[id(value)]


def _parts(value: Any, depth: int) -> Any:
    """The plain values in a container or an object; tensors and the like in it do not count."""
    if isinstance(value, PLAIN_TYPES):
        return type(value), value
    if isinstance(value, Mapping):
        items: Mapping[Any, Any] = value
    elif isinstance(value, list | tuple):
        items = dict(enumerate(value[:_MANY]))
    else:
        is_open = not isinstance(value, nn.Module | torch.Tensor | FunctionType | type)
        items = getattr(value, "__dict__", {}) if is_open else {}
    if not depth or len(items) > _MANY:
        return None
    return {key: _parts(one, depth - 1) for key, one in items.items()}


def plain_text(fixed: Any) -> str:
    """A fixed value as text that is the same in every process; empty for an object."""
    if isinstance(fixed, tuple) and isinstance(fixed[0], _Same):
        return plain_text(fixed[1])
    if isinstance(fixed, dict):
        items = ((key, plain_text(one)) for key, one in fixed.items())
        return ", ".join(f"{key}: {text}" for key, text in items if text)
    return "" if fixed is None else repr(fixed[1])
