"""All code that the forwards of a model's modules may reach, and the names in it.

    class Net(Base):                    its base's forward, which it calls by `super()`
        def forward(self, x):
            h = self.encoder.encode(x)  a method of that name, of any class of the model
            return h * SCHEDULE.now()   a method of an object beside the model

Which object a name belongs to is not known before the code runs, so names count for all of them.
Code of installed packages is followed where it is in a file of one of the model's classes.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Set
from dis import Instruction, get_instructions
from functools import cache, partial
from itertools import takewhile
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from skyfx.runtime.state.code_walk import (
    Slot,
    function_of,
    functions_from,
    names_in,
    texts_in,
    variables_of,
)
from skyfx.runtime.state.contents import (
    PLAIN_TYPES,
    few,
    is_closed,
    is_foundation,
    is_open,
    items_of,
)

_DEPTH = 3
"""How far functions and objects are looked for in containers and objects."""

_MANY = 1000


class ModelCode:
    """The code, found once.

    Attributes:
        functions: forwards, hooks, and what they name.
        names: of attributes and variables in that code.
        texts: the strings in it, such as keys of dicts.
        computes_names: whether some of it asks for attributes by names that it makes.
        classes: whose methods it may be.
        slots: its variables: globals, and those of closures; the hooks, too.
    """

    def __init__(self, model: nn.Module, hooks: Iterable[Any] = ()) -> None:
        """Follow the forwards of all modules of the model, and these hooks."""
        self.functions: list[FunctionType] = []
        self.names: set[str] = set()
        self.slots: list[Slot] = []
        self._held: dict[str, list[Any]] = {}  # on modules
        for module in model.modules():
            for name, value in vars(module).items():
                if not isinstance(value, (*PLAIN_TYPES, torch.Tensor)):
                    self._held.setdefault(name, []).append(value)
        self.classes: dict[type, None] = {}
        self._met: set[int] = set()
        self._places: set[tuple[int, str]] = set()
        kinds: Any = dict.fromkeys(map(type, model.modules()))
        bases = {base for kind in kinds for base in kind.__mro__}
        self._files = {x.__module__ for x in bases if not is_foundation(x.__module__)}
        for kind in kinds:
            self._add_kind(kind)
        self._add_name("forward")
        for i, hook in enumerate(hooks):
            self.slots.append(
                Slot(f"hook {i}: {getattr(hook, '__qualname__', type(hook).__name__)}", {"": hook})
            )
            self._add(hook)
        for function in self.functions:  # which grows
            self._read(function)
        codes = [function.__code__ for function in self.functions]
        self.texts = frozenset[str]().union(*map(texts_in, codes))
        self.computes_names = any(_computes_names(code) for code in codes)

    def _read(self, function: FunctionType) -> None:
        for name in (*names_in(function.__code__), *sorted(_names_asked(function.__code__))):
            self._add_name(name)
        for slot in variables_of(function):
            place = id(slot.owner), slot.key
            if place not in self._places:
                self._places.add(place)
                self.slots.append(slot)
                self._add(slot.value)

    def _add_name(self, name: str) -> None:
        if name in self.names:
            return
        self.names.add(name)
        for base in list(self.classes):
            self._add(vars(base).get(name))
        for value in self._held.get(name, ()):
            self._add(value)

    def _add_kind(self, kind: type) -> None:
        """Follow methods of a class; those that Python calls by itself as well."""
        for base in kind.__mro__:
            if base in self.classes or not self._is_followed(base):
                continue
            self.classes[base] = None
            for name, value in list(vars(base).items()):
                is_called = name.startswith("__") and name.endswith("__") and name != "__init__"
                if name in self.names or is_called:
                    self._add(value)

    def _add(self, value: Any, depth: int = _DEPTH) -> None:
        """Follow the functions in a value."""
        function = function_of(value)
        if function is not None and id(function) not in self._met:
            self._met.add(id(function))
            if self._is_followed(function):
                self.functions.append(function)
            self._add(getattr(function, "__wrapped__", None))
        if isinstance(value, partial):
            self._add((value.func, *value.args, *value.keywords.values()), depth)
        elif isinstance(value, MethodType):
            self._add(value.__self__, depth)
        elif isinstance(value, type):
            if not issubclass(value, nn.Module):
                self._add_kind(value)
            if issubclass(value, torch.autograd.Function):  # autograd calls the others
                self._add((value.setup_context, value.backward))
        elif depth and not isinstance(value, nn.Module):
            self._add_parts(value, depth - 1)

    def _add_parts(self, value: Any, depth: int) -> None:
        parts: Iterable[Any] = ()
        if isinstance(value, Mapping):
            parts = items_of(value).values()
        elif isinstance(value, list | tuple | deque | Set):
            parts = value
        elif is_open(value):
            self._add_kind(type(value))
            parts = vars(value).values()
        elif not is_closed(type(value)):
            self._add_kind(type(value))
        found = few(parts, _MANY)
        if not found or id(value) in self._met:
            return
        self._met.add(id(value))
        for part in found:
            self._add(part, depth)

    def _is_followed(self, code: Any) -> bool:
        return not is_closed(code) or code.__module__ in self._files


@cache
def names_read_by(kind: type[nn.Module]) -> frozenset[str]:
    """The names in the code of a class's forward, and of methods and functions that it names."""
    functions = functions_from(kind.forward, kind, closed=True)
    return frozenset({"forward"}).union(*(names_in(each.__code__) for each in functions))


@cache
def _names_asked(code: CodeType) -> frozenset[str]:
    """The names that code asks for as `getattr(x, "name")`."""
    return frozenset(name for name in _asked(code) if name is not None)


@cache
def _computes_names(code: CodeType) -> bool:
    """Whether it asks for others, or for all: `getattr(x, f"scale_{i}")`, `vars(x)`."""
    return None in _asked(code) or not {"vars", "__dict__"}.isdisjoint(names_in(code))


@cache
def _asked(code: CodeType) -> frozenset[str | None]:
    """The names that code asks for by `getattr` and `hasattr`; None for one that it makes."""
    asked: set[str | None] = set()
    found = list(get_instructions(code))
    for i, one in enumerate(found):
        if one.opname.startswith("LOAD") and one.argval in ("getattr", "hasattr"):
            loads = takewhile(lambda x: x.opname not in ("PRECALL", "CALL"), found[i + 1 :])
            asked.add(_name_in([x for x in loads if x.opname != "PUSH_NULL"]))
    for const in code.co_consts:
        if isinstance(const, CodeType):
            asked |= _asked(const)
    return frozenset(asked)


def _name_in(arguments: list[Instruction]) -> str | None:
    """The second argument of a call, if it is a string and follows a variable's attributes."""
    if not all(x.opname.startswith("LOAD") for x in arguments):
        return None
    for one in arguments[1:]:
        if one.opname != "LOAD_ATTR":
            return one.argval if isinstance(one.argval, str) and "CONST" in one.opname else None
    return None
