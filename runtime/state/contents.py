"""What values hold: read as a copy, compared with another one, and written back.

One table says how, for each type that attributes of a model may have.
"""

import copy
import itertools
import random
import sys
from argparse import Namespace
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSet
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import zip_longest
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy
import torch
from torch import Tensor, nn

NO_VALUES = "a tensor whose values are elsewhere"
"""The content of parameters, and of tensors that another process has."""

PLAIN_TYPES = (bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, type(None))
"""Types of values that hold nothing but themselves."""

_CLOSED = {*sys.stdlib_module_names, "torch", "numpy", "skyfx"}
"""Code and objects of these packages are not looked into, nor those of installed ones."""


@dataclass(frozen=True, slots=True)
class ContentKind:
    """How values of some types are treated.

    Attributes:
        types: of the values.
        read: a copy of what the value holds. Of a container: its items themselves, as a dict, a
            list or a frozenset.
        write: gives a value what was read.
        same: whether two contents are equal.
    """

    types: tuple[type, ...]
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]
    same: Callable[[Any, Any], bool]


def content(value: Any, known: set[int] | None = None) -> Any:
    """A copy of a value to compare with another: plain data, tensors, states of generators.

    Args:
        value: anything.
        known: the `id`s of containers and objects that have been read; each is read once.
    """
    kind, known = _kind_of(value), set() if known is None else known
    if kind is None or (kind in _WITH_PARTS and id(value) in known):
        return type(value)
    known.add(id(value))
    held = kind.read(value)
    if isinstance(held, dict):
        return {key: content(one, known) for key, one in held.items()}
    return [content(one, known) for one in held] if kind is _SEQUENCE else held


def equal(one: Any, other: Any) -> bool:
    """Whether two contents are the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    kind = _kind_of(one)
    if type(one) is not type(other) or kind is None:
        return one is other
    return kind.same(one, other)


def few(parts: Iterable[Any], most: int) -> list[Any] | None:
    """The entries of a container; None if they are more than so many.

    It is not asked for their number, which irreps of e3nn refuse to tell.
    """
    found = list(itertools.islice(iter(parts), most + 1))
    return found if len(found) <= most else None


def restorer(value: Any, known: set[int] | None = None) -> Callable[[], None]:
    """What gives a value its present content again; arguments are those of `content`."""
    kind, known = _kind_of(value), set() if known is None else known
    if kind is None or kind is _PLAIN or (kind in _WITH_PARTS and id(value) in known):
        return _nothing
    known.add(id(value))
    held = kind.read(value)
    parts = list(held.values()) if isinstance(held, dict) else held if kind is _SEQUENCE else []
    inner = [restorer(part, known) for part in parts]

    def restore() -> None:
        kind.write(value, held)
        for each in inner:
            each()

    return restore


def is_closed(code: Any) -> bool:
    """Whether a class, function or module is of an installed package, whose state is its own."""
    name = code.__name__ if isinstance(code, ModuleType) else getattr(code, "__module__", None)
    return _is_installed(str(name))


def is_foundation(module: str) -> bool:
    """Whether a module of this name is of Python, torch, numpy or skyfx."""
    return module.partition(".")[0] in _CLOSED


def is_open(value: Any) -> bool:
    """Whether it is an object with attributes that are looked into."""
    if not hasattr(value, "__dict__"):
        return False
    return not is_closed(type(value)) or isinstance(value, SimpleNamespace | Namespace)


@cache
def _is_installed(module: str) -> bool:
    # Any other attribute would load a lazy module, which may need what is not there.
    held = getattr(sys.modules.get(module), "__dict__", {})
    return is_foundation(module) or "-packages" in str(held.get("__file__"))


def _kind_of(value: Any) -> ContentKind | None:
    """None for an object that may hold anything."""
    for kind in _KINDS:
        if isinstance(value, kind.types):
            return kind
    return _OBJECT if is_open(value) and not isinstance(value, nn.Module | type) else None


def _read_tensor(value: Tensor) -> Any:
    is_fixed = value.is_meta or isinstance(value, nn.Parameter)
    return NO_VALUES if is_fixed else value.detach().clone()


def _write_tensor(value: Tensor, held: Any) -> None:
    if not isinstance(held, Tensor) or _same_tensors(value.detach(), held):
        return  # a write is no harmless one: autograd counts it, and some tensors refuse it
    if value.shape != held.shape:
        value.data = held.clone()
    else:
        value.detach().copy_(held)


def _same_tensors(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype, one.is_meta) != (other.shape, other.dtype, other.is_meta):
        return False
    if one.is_meta:
        return True
    one, other = one.cpu(), other.cpu()
    if torch.equal(one, other):
        return True
    same = (one == other) | ((one != one) & (other != other))
    return bool(same.all())


def _same_arrays(one: Any, other: Any) -> bool:
    same_form = (one.shape, one.dtype) == (other.shape, other.dtype)
    return same_form and bool(one.tobytes() == other.tobytes())


def _write_array(value: Any, held: Any) -> None:
    value[...] = held


def _write_generator(value: torch.Generator, held: Tensor) -> None:
    value.set_state(held)


def _same_numbers(one: Any, other: Any) -> bool:
    return bool(one == other) or (one != one and other != other)


def items_of(mapping: Mapping[Any, Any]) -> dict[Any, Any]:
    """Its items as it holds them: `[]` of a subclass may make something new in each call."""
    if not isinstance(mapping, dict):
        return dict(mapping)
    keys = OrderedDict if isinstance(mapping, OrderedDict) else dict
    return {key: dict.__getitem__(mapping, key) for key in keys.__iter__(mapping)}


def _refill_mapping(value: Any, held: Mapping[Any, Any]) -> None:
    if isinstance(value, MutableMapping) and not _is_as_before(
        items_of(value).items(), held.items()
    ):
        value.clear()
        value.update(held)


def _refill_sequence(value: Any, held: list[Any]) -> None:
    if isinstance(value, list | deque) and not _is_as_before(enumerate(value), enumerate(held)):
        value.clear()
        value.extend(held)


def _is_as_before(items: Iterable[tuple[Any, Any]], held: Iterable[tuple[Any, Any]]) -> bool:
    """Whether nothing has to be written: some containers refuse it, such as frozen configs."""
    pairs = zip_longest(items, held, fillvalue=(None, _nothing))
    return all((one is other or one == other) and x is y for (one, x), (other, y) in pairs)


def _refill_set(value: Any, held: frozenset[Any]) -> None:
    if isinstance(value, MutableSet) and frozenset(value) != held:
        value.clear()
        value |= held


def _nothing(*_: Any) -> None:
    pass


_PLAIN = ContentKind(
    PLAIN_TYPES,
    lambda x: x,
    _nothing,
    _same_numbers,
)
_MAPPING = ContentKind((Mapping,), items_of, _refill_mapping, equal)
_SEQUENCE = ContentKind(
    (list, tuple, deque),
    lambda x: list(iter(x)),  # a tuple may refuse to tell its length, as irreps of e3nn do
    _refill_sequence,
    equal,
)
_OBJECT = ContentKind(
    (), lambda x: dict(vars(x)), lambda x, held: _refill_mapping(vars(x), held), equal
)
_WITH_PARTS = (_MAPPING, _SEQUENCE, _OBJECT)
_KINDS = (
    _PLAIN,
    ContentKind((Tensor,), _read_tensor, _write_tensor, _same_tensors),
    ContentKind((numpy.ndarray,), numpy.copy, _write_array, _same_arrays),
    ContentKind((random.Random,), random.Random.getstate, random.Random.setstate, equal),
    ContentKind(
        (numpy.random.Generator,),
        lambda x: copy.deepcopy(x.bit_generator.state),
        lambda x, held: setattr(x.bit_generator, "state", held),
        equal,
    ),
    ContentKind(
        (numpy.random.RandomState,),
        lambda x: x.get_state(legacy=False),
        lambda x, held: x.set_state(held),
        equal,
    ),
    ContentKind(
        (torch.Generator,),
        torch.Generator.get_state,
        _write_generator,
        equal,
    ),
    ContentKind((set, frozenset), frozenset, _refill_set, lambda one, other: one == other),
    _MAPPING,
    _SEQUENCE,
)
