"""Values on a model's modules, and beside it, that a captured graph has fixed.

    self.temperature = 0.5        a number or a string
    self.encoder.act = nn.GELU()  which module, tensor, function or other object it is
    self.config.scale = 2.0       values in an object, a list or a dict
    SCALE = 2.0                   the same beside the model, where its code reads it
    os.environ["SCALE"] = "2"     variables of the environment, of a context, of a thread

Between two steps somebody may change them, and plain torch goes on with the new ones. Only those
count whose names the code has that the model reaches: others are notes of whoever trains.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextvars import ContextVar
from functools import partial
from types import MethodType
from typing import Any

import numpy
import torch
from torch import nn

from skyfx.runtime.state.code_walk import Slot
from skyfx.runtime.state.contents import (
    PLAIN_TYPES,
    few,
    is_closed,
    is_foundation,
    is_open,
    items_of,
)
from skyfx.runtime.state.model_code import ModelCode, names_read_by
from skyfx.runtime.state.reachable_state import NOT_STATE, reachable_slots, slots_within

_DEPTH = 4
_MANY = 1000
"""Items of a container that is only known by itself: it is read before each step."""

_MANY_BYTES = 2**20
"""The same of a numpy array."""


class Same:
    """An object that equals itself alone; it is kept, so that no other one gets its `id`."""

    __slots__ = ("of",)

    def __init__(self, of: Any) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.of is other.of

    def __hash__(self) -> int:
        return id(self.of)


class FixedValues:
    """What the code of a model reads; which places those are is found out once."""

    def __init__(
        self, model: nn.Module, hooks: Iterable[Any] = (), changed: Collection[str] = ()
    ) -> None:
        """Find them.

        Args:
            model: parameters and buffers are not among it.
            hooks: those that are called while the model is captured.
            changed: names of attributes and variables that its steps change themselves.
        """
        self._model, self._changed = model, changed
        self._code = ModelCode(model, hooks)
        own = [x for x in (*reachable_slots(model), *_parts(model)) if x.name in changed]
        self._but = {(id(x.owner), x.key) for x in own}
        self._slots = [x for x in self._code.slots if (id(x.owner), x.key) not in self._but]

    def names(self, name: str) -> bool:
        """Whether code that the model reaches names an attribute or a variable so."""
        return name in self._code.names

    def values(self) -> dict[str, Any]:
        """What they hold now, by name, to compare with `==`."""
        values: dict[str, Any] = {}
        reader = _Reader(self._code, self._but)
        for path, module in self._model.named_modules():
            prefix, held = f"{path}." if path else "", vars(module)
            values[path or type(module).__name__] = Same(module), Same(type(module))
            for name in filter(self._is_read(type(module)), held):
                if prefix + name not in self._changed:
                    values[prefix + name] = reader.read(held[name], _DEPTH)
        reader = _Reader(self._code, self._but, beside=True)
        beside = [(slot.name, reader.read(slot.value, _DEPTH)) for slot in self._slots]
        for base in self._code.classes:
            beside += reader.named(base.__qualname__, vars(base), base)
        for function in self._code.functions:
            name, own = function.__qualname__, vars(function)
            beside.append((f"{name}()", (Same(function.__code__), Same(function.__defaults__))))
            beside += reader.named(name, own, own)
        if not self._code.names.isdisjoint(("environ", "getenv")):
            named = self._code.texts & os.environ.keys()
            beside += [(f"os.environ: {x}", (str, os.environ[x])) for x in sorted(named)]
        for name, value in beside:
            values[name if name not in values else f"{name} ({len(values)})"] = value
        return values

    def _is_read(self, kind: Any) -> Callable[[str], bool]:
        """Whether code may read an attribute of modules of this class."""
        if self._code.computes_names and not is_closed(kind):
            return lambda name: name not in NOT_STATE
        names, own = self._code.names, names_read_by(kind)
        return lambda name: (name in names or name in own) and name not in NOT_STATE


def _parts(model: nn.Module) -> Iterator[Slot]:
    """The attributes of objects that modules hold."""
    met: set[int] = set()
    for path, module in model.named_modules():
        for key in vars(module):
            yield from slots_within(Slot(f"{path}.{key}" if path else key, vars(module), key), met)


class _Reader:
    """Reads contents; an object that is met again is read once."""

    def __init__(
        self, code: ModelCode, but: Collection[tuple[int, str]], *, beside: bool = False
    ) -> None:
        self._code, self._but, self._beside = code, but, beside
        self._read: dict[int, tuple[Any, Any]] = {}  # with the object, which keeps its `id`

    def read(self, value: Any, depth: int) -> Any:
        """Plain data, or what equals the same object alone."""
        if isinstance(value, PLAIN_TYPES):
            return type(value), value
        if isinstance(value, numpy.generic):
            return type(value), value.item()
        if isinstance(value, torch.Tensor | nn.Module | type):
            return Same(value)
        if isinstance(value, ContextVar):
            return self.read(value.get(None), depth)
        if isinstance(value, MethodType):
            return {"": Same(value.__func__), "self": self.read(value.__self__, depth)}
        if id(value) not in self._read:
            self._read[id(value)] = value, Same(value)  # until its parts are known
            self._read[id(value)] = value, self._parts(value, depth)
        return self._read[id(value)][1]

    def named(self, prefix: str, held: Mapping[str, Any], owner: Any) -> list[tuple[str, Any]]:
        """Those of a class's or a function's attributes that code names."""
        names = [x for x in held if x in self._code.names and not x.startswith("__")]
        names = [x for x in names if (id(owner), x) not in self._but]
        return [(f"{prefix}: {x}", self.read(held[x], _DEPTH)) for x in names]

    def _parts(self, value: Any, depth: int) -> Any:
        if isinstance(value, numpy.ndarray):
            is_small = value.nbytes <= _MANY_BYTES and not value.dtype.hasobject
            data = value.tobytes() if is_small else Same(value)
            return numpy.ndarray, (value.shape, value.dtype.str, data)
        if isinstance(value, Set):
            held = few(value, _MANY)
            return type(value), Same(value) if held is None else frozenset(held)
        items = self._items(value) if depth else None
        if items is None or len(items) > _MANY:
            return Same(value)
        return {key: self.read(one, depth - 1) for key, one in items.items()}

    def _items(self, value: Any) -> dict[Any, Any] | None:
        """The parts of a container or an object by their keys; None if it is not looked into."""
        if isinstance(value, partial):
            return {"func": value.func, "args": value.args, "keywords": value.keywords}
        if isinstance(value, threading.local):
            return dict(vars(value))
        if isinstance(value, Mapping):
            if few(value, _MANY) is None:
                return None
            held = items_of(value)
            named = [key for key in held if self._beside and key in self._code.texts]
            return {key: held[key] for key in named or held}
        if isinstance(value, list | tuple | deque):
            parts = few(value, _MANY)
            return None if parts is None else dict(enumerate(parts))
        if not self._is_open(value):
            return None
        items = {"": type(value), **_attributes(value)}
        if self._beside and not self._code.computes_names:
            items = {x: y for x, y in items.items() if not x or x in self._code.names}
        where = id(getattr(value, "__dict__", None))
        return {x: y for x, y in items.items() if (where, x) not in self._but}

    def _is_open(self, value: Any) -> bool:
        """Whether it is an object that is looked into; configs of packages are, on modules."""
        if is_open(value):
            return True
        if not is_closed(type(value)):
            return hasattr(type(value), "__slots__")
        is_config = hasattr(value, "__dict__") and not is_foundation(type(value).__module__)
        return is_config and not self._beside


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots as well."""
    found = {}
    for base in type(value).__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                found[name] = getattr(value, name)
    return found | getattr(value, "__dict__", {})


def plain_text(fixed: Any) -> str:
    """A fixed value as text that is the same in every process; empty for an object."""
    if isinstance(fixed, dict):
        items = ((key, plain_text(one)) for key, one in fixed.items())
        return ", ".join(f"{key}: {text}" for key, text in items if text)
    is_plain = isinstance(fixed, tuple) and isinstance(fixed[0], type)
    return repr(fixed[1]) if is_plain and issubclass(fixed[0], PLAIN_TYPES) else ""
