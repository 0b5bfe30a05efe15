"""Python numbers that a forward leaves on attributes.

self.last = loss.item()             Computed  crosses from stage to stage as a tensor of one number
self.calls += 1                     Added     what comes to the number that the attribute holds
self.mean = self.sum / self.calls   Formula   computed where all numbers are known
"""

import copy
import operator
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor

from skyfx.runtime.pytree import register_node, tree_leaves, tree_map
from skyfx.solver.errors import CaptureError

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Computed:
    """A number that code computes from values in each call, as a tensor."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @classmethod
    def of(cls, number: complex) -> "Computed":
        """From a number of Python, without loss."""
        kind = {bool: torch.bool, int: torch.int64, float: torch.float64}
        return cls(torch.tensor(number, dtype=kind.get(type(number), torch.complex128)))

    @property
    def number(self) -> Any:
        """The number itself; a tensor without values where another process has it."""
        return self.tensor if self.tensor.is_meta else self.tensor.item()


class _Unread:
    """A number without a value: code can compute with it, and not read it."""

    __slots__ = ()

    def __add__(self, other: Any) -> Any:
        return _formula(operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return _formula(operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return _formula(operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return _formula(operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return _formula(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return _formula(operator.mul, other, self)

    def __truediv__(self, other: Any) -> Any:
        return _formula(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _formula(operator.truediv, other, self)

    def _refuse(self, *_: Any) -> NoReturn:
        raise CaptureError(
            "a number that forward counts up is read where it has no value: by forward itself, or "
            "in a process without the last stage"
        )

    __bool__ = __int__ = __float__ = __complex__ = __index__ = __hash__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __repr__ = __str__ = __format__ = _refuse


class Added(_Unread):
    """What comes to a number: a stand-in for it, which can be added to and not be read.

    So code that runs with it does nothing but count, whatever the number is. Where another process
    has what is added, the number stays one.

    Attributes:
        terms: what comes to it.
        name: of the attribute that holds the number; empty if that is in a container.
    """

    __slots__ = ("name", "terms")

    def __init__(self, terms: tuple[Any, ...] = (), name: str = "") -> None:
        self.terms, self.name = terms, name

    def __add__(self, other: Any) -> Any:
        if isinstance(other, int | float | complex | Tensor | Computed):
            return Added((*self.terms, other), self.name)
        return super().__add__(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        if isinstance(other, int | float | complex | Tensor):
            return Added((*self.terms, -other), self.name)
        return super().__sub__(other)


class Formula(_Unread):
    """A number that is computed from counted ones: a function, and what it is called with."""

    __slots__ = ("function", "operands")

    def __init__(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> None:
        self.function, self.operands = function, operands


def _formula(function: Callable[..., Any], one: Any, other: Any) -> Any:
    """The result of an operator, if both are single numbers, and counted ones have names."""
    for x in (one, other):
        is_single = isinstance(x, int | float | complex | Computed | Formula)
        is_single |= isinstance(x, Tensor) and x.numel() == 1
        if not (is_single or (isinstance(x, Added) and x.name)):
            return NotImplemented
    return Formula(function, (one, other))


register_node(Computed, lambda x: ([x.tensor], None), lambda parts, _: Computed(*parts))
register_node(Added, lambda x: (list(x.terms), x.name), lambda parts, at: Added(tuple(parts), at))
register_node(
    Formula,
    lambda x: (list(x.operands), x.function),
    lambda parts, function: Formula(function, tuple(parts)),
)


def is_stand_in(value: Any) -> bool:
    """Whether it stands for a number, which forward cannot read."""
    return isinstance(value, Computed | Added | Formula)


def without_numbers(value: Any) -> Any:
    """A nesting with None for each of both."""
    return tree_map(lambda x: None if is_stand_in(x) else x, value, is_leaf=is_stand_in)


def is_counted(value: Any) -> bool:
    """Whether something is added to in a nesting."""
    leaves = tree_leaves(value, is_leaf=is_stand_in)
    return any(isinstance(x, Formula) or (isinstance(x, Added) and x.terms) for x in leaves)


def _is_elsewhere(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def names_in(value: Any) -> Iterator[str]:
    """The attributes whose numbers the formulas in a nesting are computed from."""
    for x in tree_leaves(value, is_leaf=is_stand_in):
        for part in x.operands if isinstance(x, Formula) else ():
            yield from [part.name] if isinstance(part, Added) else names_in(part)


def plain_value(value: Any, held: Any, before: Mapping[str, Any] = _NOTHING) -> Any:
    """What takes the place of `held`: a nesting in which all have become numbers.

    Args:
        value: the nesting.
        held: what is in its place.
        before: the numbers that named attributes have held before.
    """
    return _Placing(before, is_read=True)(value, held)


def traced_value(value: Any, held: Any, _: Mapping[str, Any] = _NOTHING) -> Any:
    """The same while torch traces, where a computed number has no value."""
    return _Placing(_NOTHING, is_read=False)(value, held)


def as_is(value: Any, *_: Any) -> Any:
    """The nesting itself."""
    return value


class _Placing:
    """Puts numbers in the place of their stand-ins."""

    def __init__(self, before: Mapping[str, Any], *, is_read: bool) -> None:
        self._before, self._is_read = before, is_read

    def __call__(self, value: Any, held: Any) -> Any:
        if isinstance(value, Computed):
            return value.number if self._is_read else value
        if isinstance(value, Added):
            return self._sum(value, held)
        if isinstance(value, Formula):
            return self._result(value) if self._is_read else value
        if isinstance(value, dict):
            old = held if isinstance(held, Mapping) else {}
            made = copy.copy(value)
            for key, one in value.items():
                made[key] = self(one, old.get(key))
            return made
        if isinstance(value, list | tuple):
            before = list(held) if isinstance(held, list | tuple) else []
            pairs = zip(value, [*before, *[None] * len(value)], strict=False)
            items = [self(one, other) for one, other in pairs]
            if isinstance(value, list):
                return items
            return value._make(items) if hasattr(value, "_make") else tuple(items)
        return value

    def _sum(self, value: Added, held: Any) -> Any:
        terms = [self(term, None) for term in value.terms]
        if self._is_read and (isinstance(held, Added) or any(map(_is_elsewhere, terms))):
            return Added()
        total = held if isinstance(held, int | float | complex | Tensor | Added) else 0
        for term in terms:
            total = total + term
        return total

    def _result(self, value: Formula) -> Any:
        held = (self._before.get(x.name) if isinstance(x, Added) else None for x in value.operands)
        found = [self(x, old) for x, old in zip(value.operands, held, strict=True)]
        is_unknown = any(is_stand_in(x) or _is_elsewhere(x) for x in found)
        return Added() if is_unknown else value.function(*found)
