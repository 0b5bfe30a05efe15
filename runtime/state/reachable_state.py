"""Python state outside of a model's modules that its code can change.

calls = 0                                 a global that a forward names
class Net: log = []                       an attribute of a class
def hook(module, args, output):           a hook, which the modules keep:
    seen.append(output)                   its closure, its globals, its object
"""

from collections import deque
from collections.abc import Iterator, MutableMapping, MutableSequence, MutableSet
from dataclasses import dataclass
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from skyfx.runtime.state.contents import is_closed
from skyfx.runtime.state.python_numbers import Added

NOT_STATE = frozenset(
    (
        *("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
        *("_flat_weights", "_flat_weight_refs"),  # an LSTM's parameters once more
    )
)
"""Attributes of every module that torch keeps for itself, or that are read otherwise."""

_CHANGING = (
    bool,
    int,
    float,
    Added,
    Tensor,
    numpy.ndarray,
    MutableMapping,
    MutableSequence,
    MutableSet,
    deque,
    torch.Generator,
)
"""Types of variables that are looked at: many others, such as loggers, keep caches of their own."""

_DEPTH = 4
"""How far functions that functions name are followed."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place that holds a value: a key of a dict, a variable of a closure, or of a class.

    Attributes:
        name: as messages have it, with a colon where it is no attribute of the model.
        owner: the dict, the cell or the class.
        key: of the dict or the class.
    """

    name: str
    owner: MutableMapping[str, Any] | CellType | type
    key: str = ""

    @property
    def value(self) -> Any:
        """What is there now; None for a variable that is not set yet."""
        if isinstance(self.owner, type):
            return vars(self.owner)[self.key]
        if isinstance(self.owner, CellType):
            return self.owner.cell_contents if self.owner != CellType() else None
        return self.owner.get(self.key)

    def put(self, value: Any) -> None:
        """Put a value there."""
        if isinstance(self.owner, type):
            setattr(self.owner, self.key, value)
        elif isinstance(self.owner, CellType):
            self.owner.cell_contents = value
        else:
            self.owner[self.key] = value


class _Reach:
    """Walks from functions to the variables that they name; each is met once."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._met: set[Any] = set(map(id, model.modules()))
        self.objects: list[Any] = []
        self.functions: list[FunctionType] = []

    def slots(self) -> Iterator[Slot]:
        """All of them."""
        for kind in dict.fromkeys(type(module) for module in self._model.modules()):
            yield from self.of_class(kind)
        for path, module in self._model.named_modules():
            for hook in hooks_of(module):
                yield from self.of_hook(hook, f"{path}." if path else "")

    def of_class(self, kind: type[nn.Module]) -> Iterator[Slot]:
        """Attributes of a module's class, and what its forward reaches."""
        for base in [base for base in kind.__mro__ if not is_closed(base)]:
            for name, value in list(vars(base).items()):
                if isinstance(value, _CHANGING) and not name.startswith("__"):
                    yield from self._once(Slot(f"{base.__qualname__}: {name}", base, name))
        if not is_closed(kind):
            yield from self._of_function(kind.forward, _DEPTH, kind)

    def of_hook(self, hook: Any, prefix: str) -> Iterator[Slot]:
        """What a hook reaches: a function, a method, or any object that can be called."""
        while isinstance(hook, partial):
            for i, argument in enumerate(hook.args):
                yield from self._of_variable(Slot(f"{prefix}hook: {i}", {"": argument}), _DEPTH)
            hook = hook.func
        yield from self._of_object(getattr(hook, "__self__", hook), prefix)
        function = hook if isinstance(hook, FunctionType | MethodType) else type(hook).__call__
        yield from self._of_function(function, _DEPTH)

    def _of_function(self, function: Any, depth: int, kind: type = object) -> Iterator[Slot]:
        """Variables of its closure, globals that it names, and those of functions among them."""
        function = getattr(function, "__func__", function)
        if not isinstance(function, FunctionType) or is_closed(function) or not depth:
            return
        if id(function) in self._met:
            return
        self._met.add(id(function))
        self.functions.append(function)
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            slot = Slot(f"{function.__qualname__}: {name}", cell)
            yield from self._of_variable(slot, depth)
        for i, value in enumerate(function.__defaults__ or ()):
            slot = Slot(f"{function.__qualname__}: default {i}", {"": value})
            yield from self._of_variable(slot, depth)
        names = names_in(function.__code__)
        module = str(function.__globals__.get("__name__"))
        for name in sorted(names & function.__globals__.keys()):
            slot = Slot(f"{module}: {name}", function.__globals__, name)
            if isinstance(slot.value, ModuleType) and not is_closed(slot.value):
                there = vars(slot.value)
                for inner in sorted(names & there.keys()):
                    inside = Slot(f"{slot.value.__name__}: {inner}", there, inner)
                    yield from self._of_variable(inside, depth)
            yield from self._of_variable(slot, depth)
        for name in sorted(names):  # methods that a method calls
            yield from self._of_function(getattr(kind, name, None), depth - 1, kind)

    def _of_variable(self, slot: Slot, depth: int) -> Iterator[Slot]:
        value = slot.value
        if isinstance(value, FunctionType | MethodType):
            yield from self._of_function(value, depth - 1)
        elif isinstance(value, _CHANGING):
            yield from self._once(slot)
        else:
            yield from self._of_object(value, "")

    def _of_object(self, value: Any, prefix: str) -> Iterator[Slot]:
        """Attributes of an object; of a module outside of the model as well."""
        is_code = isinstance(value, type | FunctionType | ModuleType)
        if is_code or is_closed(type(value)) or not hasattr(value, "__dict__"):
            return
        if id(value) in self._met:
            return
        self._met.add(id(value))
        self.objects.append(value)
        held = {**vars(type(value)), **vars(value)}
        for name in [x for x in held if isinstance(held[x], _CHANGING) and not x.startswith("_")]:
            yield Slot(f"{prefix}{type(value).__name__}: {name}", vars(value), name)

    def _once(self, slot: Slot) -> Iterator[Slot]:
        place = (id(slot.owner), slot.key)
        if place not in self._met:
            self._met.add(place)
            yield slot


def reachable_slots(model: nn.Module) -> list[Slot]:
    """What the classes of a model's modules, their forwards and their hooks reach."""
    return list(_Reach(model).slots())


def reachable_objects(model: nn.Module) -> list[Any]:
    """The objects among it, whose attributes have slots."""
    reach = _Reach(model)
    list(reach.slots())
    return reach.objects


def reachable_functions(model: nn.Module) -> list[FunctionType]:
    """The forwards, the hooks, and the functions that they call."""
    reach = _Reach(model)
    list(reach.slots())
    return reach.functions


def hooks_of(module: nn.Module) -> list[Any]:
    """The forward hooks of a module, before it and after it."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def names_in(code: CodeType) -> set[str]:
    """Names of globals and attributes in a function and the functions inside it."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*map(names_in, inner))
