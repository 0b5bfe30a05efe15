"""Python state outside of a model's modules that its code can change.

calls = 0                                 a global that a forward names
class Net: log = []                       an attribute of a class
def hook(module, args, output):           a hook, which the modules keep:
    seen.append(output)                   its closure, its globals, its object
"""

from collections import deque
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, MutableSet
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from skyfx.runtime.state.code_walk import (
    Slot,
    functions_from,
    variables_of,
)
from skyfx.runtime.state.contents import is_closed, is_foundation, is_open
from skyfx.runtime.state.model_code import names_read_by
from skyfx.runtime.state.python_numbers import Added

HOOK_TABLES = frozenset(name for name in vars(nn.Module()) if "_hooks" in name)
"""Where torch keeps the hooks of a module."""

NOT_STATE = HOOK_TABLES.union(
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


class _Reach:
    """Collects the variables of types that change, which the code of a model reaches, once each."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._met: set[Any] = set(map(id, model.modules()))
        self.objects: list[Any] = []
        self.functions: dict[FunctionType, None] = {}

    def of_all(self) -> Iterator[Slot]:
        """What classes, forwards and hooks reach."""
        yield from self.of_classes()
        yield from self.of_hooks(hooks_of)
        yield from self.of_hooks(backward_hooks_of)

    def of_classes(self) -> Iterator[Slot]:
        """Attributes of the modules' classes, and what their forwards reach."""
        for kind in dict.fromkeys(type(module) for module in self._model.modules()):
            for base in [base for base in kind.__mro__ if not is_closed(base)]:
                for name, value in list(vars(base).items()):
                    if isinstance(value, _CHANGING) and not name.startswith("__"):
                        yield from self._once(Slot(f"{base.__qualname__}: {name}", base, name))
            if not is_closed(kind):
                yield from self._of_code(kind.forward, kind)
        for module in self._model.modules():  # functions of this module alone
            own: Any = type(module)
            for name in sorted(vars(module).keys() & names_read_by(own)):
                yield from self._of_code(vars(module)[name], own)

    def of_hooks(self, of: Callable[[nn.Module], list[Any]]) -> Iterator[Slot]:
        """What the hooks of each module reach."""
        for path, module in self._model.named_modules():
            for hook in of(module):
                yield from self._of_hook(hook, f"{path}." if path else "")

    def _of_hook(self, hook: Any, prefix: str) -> Iterator[Slot]:
        """What a hook reaches: a function, a method, or any object that can be called."""
        while isinstance(hook, partial):
            for i, argument in enumerate(hook.args):
                yield from self._of_variable(Slot(f"{prefix}hook: {i}", {"": argument}))
                yield from self._of_code(argument)
            hook = hook.func
        yield from self._of_object(getattr(hook, "__self__", hook), prefix)
        function = hook if isinstance(hook, FunctionType | MethodType) else type(hook).__call__
        yield from self._of_code(function)

    def _of_code(self, function: Any, kind: type = object) -> Iterator[Slot]:
        for each in functions_from(function, kind):
            self.functions[each] = None
            for slot in variables_of(each):
                yield from self._of_variable(slot)

    def _of_variable(self, slot: Slot) -> Iterator[Slot]:
        value = slot.value
        if isinstance(value, _CHANGING):
            yield from self._once(slot)
        else:
            yield from self._of_object(value, "")

    def _of_object(self, value: Any, prefix: str) -> Iterator[Slot]:
        """Attributes of an object; of a module outside of the model as well."""
        is_code = isinstance(value, type | FunctionType | ModuleType)
        if is_code or not is_open(value) or id(value) in self._met:
            return
        self._met.add(id(value))
        self.objects.append(value)
        held = {**vars(type(value)), **vars(value)}
        for name in held:
            if isinstance(held[name], _CHANGING) and not name.startswith("_"):
                yield Slot(f"{prefix}{type(value).__name__}: {name}", vars(value), name)
            else:
                yield from self._of_object(held[name], prefix)

    def _once(self, slot: Slot) -> Iterator[Slot]:
        place = (id(slot.owner), slot.key)
        if place not in self._met:
            self._met.add(place)
            yield slot


def is_taken_apart(value: Any) -> bool:
    """Whether it is an object of the user's whose attributes are state: a meter, a config."""
    return is_open(value) and not isinstance(value, nn.Module | type)


def slots_within(slot: Slot, met: set[int]) -> Iterator[Slot]:
    """The attributes of an object in a slot, and those of objects in them, once each."""
    value = slot.value
    if is_taken_apart(value) and id(value) not in met:
        met.add(id(value))
        for key in list(vars(value)):
            part = Slot(f"{slot.name}.{key}", vars(value), key)
            yield part
            yield from slots_within(part, met)


def objects_of_packages(module: nn.Module) -> list[Any]:
    """The objects of installed packages that a module holds: forward may fill caches of theirs."""
    return [
        x
        for x in vars(module).values()
        if hasattr(x, "__dict__")
        and is_closed(type(x))
        and not is_foundation(type(x).__module__)
        and not isinstance(x, nn.Module | type)
    ]


def reachable_slots(model: nn.Module) -> list[Slot]:
    """What the classes of a model's modules, their forwards and their hooks reach."""
    return list(_Reach(model).of_all())


def reachable_objects(model: nn.Module) -> list[Any]:
    """The objects among it, whose attributes have slots."""
    reach = _Reach(model)
    list(reach.of_all())
    return reach.objects


def reachable_functions(model: nn.Module) -> list[FunctionType]:
    """The forwards, the hooks, and the functions that they call."""
    reach = _Reach(model)
    list(reach.of_all())
    return list(reach.functions)


def changed_in_backward(model: nn.Module) -> frozenset[str]:
    """The names of what backward hooks reach. Stages call them in an order of their own."""
    return frozenset(slot.name for slot in _Reach(model).of_hooks(backward_hooks_of))


def backward_hooks_of(module: nn.Module) -> list[Any]:
    """The hooks that backward calls, of a module and of its own parameters."""
    tables: list[Any] = [module._backward_pre_hooks, module._backward_hooks]
    for x in module.parameters(recurse=False):
        tables += [x._backward_hooks, getattr(x, "_post_accumulate_grad_hooks", None)]
    return [hook for table in tables for hook in (table or {}).values()]


def parameters_with_hooks(model: nn.Module) -> list[str]:
    """The names of those of which a hook is called once their gradient is there, and may step."""
    hooked = (
        name
        for name, x in model.named_parameters()
        if getattr(x, "_post_accumulate_grad_hooks", None)
    )
    return list(hooked)


def hooks_of(module: nn.Module) -> list[Any]:
    """The forward hooks of a module, before it and after it."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def module_hooks_of(module: nn.Module) -> list[Any]:
    """All hooks that are called when the module is: one more makes it run otherwise."""
    return [
        *hooks_of(module),
        *module._backward_pre_hooks.values(),
        *module._backward_hooks.values(),
    ]


def check_global_hooks() -> None:
    """Hooks of all modules would be called for the parts of captured graphs as well.

    Raises:
        ValueError: user's code has registered one.
    """
    torchs = torch.nn.modules.module
    for table in (
        torchs._global_forward_pre_hooks,
        torchs._global_forward_hooks,
        torchs._global_backward_pre_hooks,
        torchs._global_backward_hooks,
    ):
        for hook in table.values():
            code = getattr(hook, "__func__", hook)
            if not is_closed(code if hasattr(code, "__qualname__") else type(code)):
                raise ValueError(
                    f"a hook of all modules is registered ({getattr(code, '__qualname__', code)}), "
                    "which stages cannot call as plain torch does: register it on the modules "
                    "that it is meant for, by module.register_forward_hook"
                )
