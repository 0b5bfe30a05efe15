"""All that a forward can change: tensors, attributes of modules, and random generators.

Parameters are not among it, unless they are named: an optimizer changes them, and few forwards do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import nn

from skyfx.runtime.rng.generator_state import comparable_states, preserve_generators
from skyfx.runtime.state.code_walk import Slot
from skyfx.runtime.state.contents import PLAIN_TYPES, content, equal, restorer
from skyfx.runtime.state.reachable_state import (
    HOOK_TABLES,
    NOT_STATE,
    is_taken_apart,
    objects_of_packages,
    reachable_objects,
    reachable_slots,
    slots_within,
)
from skyfx.runtime.state.written_parameters import WrittenParameters, parameter_restorer


@dataclass(frozen=True, slots=True)
class ModelState:
    """The values at one moment, by name; tensors and containers are copies.

    Attributes:
        values: of buffers, attributes, and what code of the model reaches beside them, as
            `content` gives them.
        generators: the states of torch's, Python's and numpy's generators.
    """

    values: Mapping[str, Any]
    generators: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module, parameters: Sequence[str] = ()) -> "ModelState":
        """The state of a model and of this process's generators.

        Args:
            model: the model.
            parameters: the names of those that belong to the state.
        """
        slots = list(state_slots(model))
        known = {id(x.value) for x in slots if is_taken_apart(x.value)}  # read by their parts
        values = {slot.name: content(slot.value, known) for slot in slots}
        values |= {x: content(model.get_parameter(x).detach(), known) for x in parameters}
        return cls(values, comparable_states())

    def changes(self, other: "ModelState") -> frozenset[str]:
        """The names of values that are others in the other state."""
        names = self.values.keys() | other.values.keys()
        pairs = ((name, self.values.get(name), other.values.get(name)) for name in names)
        return frozenset(name for name, one, two in pairs if not equal(one, two))

    def equals(self, other: "ModelState") -> bool:
        """Whether nothing has changed."""
        same_draws = self.generators["torch"] == other.generators["torch"]
        return same_draws and equal(dict(self.values), dict(other.values))


@contextmanager
def preserve_state(model: nn.Module, parameters: Sequence[str] = ()) -> Iterator[None]:
    """Within it, forward may change what it likes; afterwards all is as before.

    Tensors, lists, dicts and sets are the same objects again, with their former content.

    Args:
        model: the model.
        parameters: the names of those that forward may change.
    """
    owners = [vars(x) for x in reachable_objects(model)]
    for module in model.modules():
        owners += [vars(module), module._buffers, *map(vars, objects_of_packages(module))]
    held = [(owner, dict(owner)) for owner in owners]
    tables: list[dict[Any, Any]] = [x for part in model.modules() for x in registered_tables(part)]
    registered = [(table, dict(table)) for table in tables]
    # Of most attributes it is enough that the same number is there again.
    known, by_name = set[int](), set(map(id, owners))
    undo = [
        _restorer(slot, known)
        for slot in state_slots(model)
        if not (id(slot.owner) in by_name and isinstance(slot.value, PLAIN_TYPES))
    ]
    undo += [parameter_restorer(model.get_parameter(name)) for name in parameters]
    undo += [restorer(module._non_persistent_buffers_set) for module in model.modules()]
    try:
        with preserve_generators():
            yield
    finally:
        with torch.no_grad():
            for table, before in registered:
                if list(table) != list(before) or any(table[x] is not before[x] for x in table):
                    table.clear()
                    table.update(before)
            for owner, before in held:
                for key in owner.keys() - before.keys():
                    del owner[key]
                for key, value in before.items():
                    if key not in NOT_STATE and owner.get(key, owner) is not value:
                        owner[key] = value
            for restore in undo:
                restore()


@contextmanager
def preserve_run(model: nn.Module) -> Iterator[WrittenParameters]:
    """As `preserve_state`, for code of the model that runs in this thread and may write anything.

    Parameters that it writes to are noticed, and are as before, too; yields them.
    """
    written = WrittenParameters(model)
    with preserve_state(model):
        try:
            with written:
                yield written
        finally:
            written.restore()


def attribute_slots(module: nn.Module, prefix: str = "") -> Iterator[Slot]:
    """The attributes of a module itself that are neither parameters, buffers nor torch's own.

    Numbers and texts that a `cached_property` has computed are none: whoever reads them when they
    are not there gets them too.
    """
    held, cached = vars(module), _cached_properties(type(module).__mro__)
    for name in [name for name in held if name not in NOT_STATE]:
        if name not in cached or not isinstance(held[name], PLAIN_TYPES):
            yield Slot(prefix + name, held, name)


def state_slots(model: nn.Module) -> Iterator[Slot]:
    """Attributes and buffers by their names from the model on, and what its code reaches."""
    yield from module_slots(model)
    yield from reachable_slots(model)


def module_slots(model: nn.Module) -> Iterator[Slot]:
    """Attributes, those of objects in them, and buffers, by their names from the model on."""
    met: set[int] = set()
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for slot in attribute_slots(module, prefix):
            yield slot
            yield from slots_within(slot, met)
        for name in module._buffers:
            yield Slot(prefix + name, module._buffers, name)


@cache
def _cached_properties(classes: tuple[type, ...]) -> frozenset[str]:
    """The names of the cached properties of a class and its bases."""
    return frozenset(
        name
        for base in classes
        for name, value in vars(base).items()
        if isinstance(value, cached_property)
    )


def registered_tables(module: nn.Module) -> list[dict[Any, Any]]:
    """Its submodules, its parameters, and its hooks of all kinds: a first call may change them."""
    hooks = [vars(module)[name] for name in HOOK_TABLES & vars(module).keys()]
    return [module._modules, module._parameters, *hooks]


def _restorer(slot: Slot, known: set[int]) -> Callable[[], None]:
    """Puts back what a slot has now, and its content."""
    value = slot.value
    refill = restorer(value, known)

    def restore() -> None:
        if slot.value is not value:
            slot.put(value)
        refill()

    return restore
