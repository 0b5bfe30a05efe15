"""All that a forward can change: tensors, attributes of modules, and random generators.

Parameters are not among it: an optimizer changes them, no forward does.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from skyfx.runtime.rng.generator_state import comparable_states, preserve_generators

NOT_STATE = frozenset(
    ("training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
)
"""Attributes of every module that torch keeps for itself, or that `ModelState` reads otherwise."""

NO_VALUES = "a tensor whose values are elsewhere"
"""Stands for parameters, and for tensors that another process has."""

MAX_DEPTH = 8
"""How deep containers are looked into."""


@dataclass(frozen=True, slots=True)
class ModelState:
    """The values at one moment, by name; tensors and containers are copies.

    Attributes:
        values: of buffers and attributes, as `content` gives them.
        generators: the states of torch's, Python's and numpy's generators.
    """

    values: Mapping[str, Any]
    generators: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> "ModelState":
        """The state of a model and of this process's generators."""
        values = {name: content(value) for name, value in _attributes(model)}
        return cls(values, comparable_states())

    def equals(self, other: "ModelState") -> bool:
        """Whether nothing has changed."""
        same_draws = self.generators["torch"] == other.generators["torch"]
        return same_draws and equal(dict(self.values), dict(other.values))


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Within it, forward may change what it likes; afterwards all is as before.

    Tensors, lists, dicts and sets are the same objects again, with their former content.
    """
    undo = [_restorer(owner, key) for owner, key in _owners(model)]
    known = {id(module): set(vars(module)) for module in model.modules()}
    try:
        with preserve_generators():
            yield
    finally:
        with torch.no_grad():
            for module in model.modules():
                for key in set(vars(module)) - known.get(id(module), set()):
                    delattr(module, key)
            for restore in undo:
                restore()


def content(value: Any, depth: int = 0) -> Any:
    """A copy of a value to compare with another: plain data, tensors, states of generators."""
    if isinstance(value, Tensor):
        is_fixed = value.is_meta or isinstance(value, nn.Parameter)
        return NO_VALUES if is_fixed else value.detach().clone()
    if isinstance(value, random.Random):
        return ("random", value.getstate())
    if isinstance(value, numpy.random.Generator):
        return ("numpy", repr(value.bit_generator.state))
    if isinstance(value, numpy.random.RandomState):
        return ("numpy", repr(value.get_state()))
    if isinstance(value, torch.Generator):
        return ("torch", value.get_state())
    if isinstance(value, numpy.ndarray):
        return value.copy()
    if isinstance(value, bool | int | float | complex | str | bytes | None):
        return value
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        return {key: content(one, depth + 1) for key, one in value.items()}
    if depth < MAX_DEPTH and isinstance(value, list | tuple | deque):
        return [content(one, depth + 1) for one in value]
    if isinstance(value, set | frozenset):
        return frozenset(map(id, value)), len(value)
    return type(value)  # an object of a class that may hold anything


def equal(one: Any, other: Any) -> bool:
    """Whether two contents are the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same_kind = (one.shape, one.dtype) == (other.shape, other.dtype)
        return same_kind and bool(torch.equal(one.cpu(), other.cpu()))
    if isinstance(one, numpy.ndarray) and isinstance(other, numpy.ndarray):
        return numpy.array_equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if type(one) is not type(other):
        return False
    return bool(one == other) or (isinstance(one, float) and one != one and other != other)


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Buffers and attributes, by their names from the model on."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in {**vars(module), **module._buffers}.items():
            if name not in NOT_STATE and not _is_hook_table(name):
                yield prefix + name, value


def _is_hook_table(name: str) -> bool:
    return name.startswith("_") and "_hooks" in name


def _owners(model: nn.Module) -> Iterator[tuple[Any, str]]:
    for module in model.modules():
        for name in vars(module):
            if name not in NOT_STATE and not _is_hook_table(name):
                yield vars(module), name
        for name in module._buffers:
            yield module._buffers, name


def _restorer(owner: MutableMapping[str, Any], key: str) -> Callable[[], None]:
    """Puts back what the owner has under this key now, and its content."""
    value = owner[key]
    refill = _refill(value)

    def restore() -> None:
        owner[key] = value
        refill()

    return restore


def _refill(value: Any, depth: int = 0) -> Callable[[], None]:
    """Gives a value its present content again."""
    if isinstance(value, Tensor):
        if value.is_meta or isinstance(value, nn.Parameter):
            return _nothing
        before = value.detach().clone()
        return lambda: _write(value, before)
    if isinstance(value, random.Random):
        state = value.getstate()
        return lambda: value.setstate(state)
    if isinstance(value, numpy.random.Generator):
        numbers = value.bit_generator.state

        def set_numbers() -> None:
            value.bit_generator.state = numbers

        return set_numbers
    if isinstance(value, torch.Generator):
        there = value.get_state()
        return partial(_set_state, value, there)
    if depth < MAX_DEPTH and isinstance(value, MutableMapping):
        items, inner = dict(value), [_refill(one, depth + 1) for one in value.values()]
        return lambda: _again(value, lambda: value.update(items), inner)
    if depth < MAX_DEPTH and isinstance(value, MutableSequence):
        parts, inner = list(value), [_refill(one, depth + 1) for one in value]
        return lambda: _again(value, lambda: value.extend(parts), inner)
    if isinstance(value, set):
        members = set(value)
        return lambda: _again(value, lambda: value.update(members), [])
    return _nothing


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def _write(tensor: Tensor, value: Tensor) -> None:
    tensor.detach().copy_(value)


def _again(value: Any, fill: Callable[[], None], inner: list[Callable[[], None]]) -> None:
    value.clear()
    fill()
    for restore in inner:
        restore()


def _nothing() -> None:
    pass
