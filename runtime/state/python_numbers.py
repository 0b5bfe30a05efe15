"""Python numbers that a forward leaves on attributes.

self.last = loss.item()    Computed    crosses from stage to stage as a tensor of one number
self.calls += 1            Added       what comes to the number that the attribute holds
"""

import copy
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from skyfx.runtime.pytree import register_node, tree_leaves, tree_map
from skyfx.solver.errors import CaptureError


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


class Added:
    """What comes to a number: a stand-in for it, which can be added to and not be read.

    So code that runs with it does nothing but count, whatever the number is. Where another process
    has what is added, the number stays one.
    """

    __slots__ = ("terms",)

    def __init__(self, terms: tuple[Any, ...] = ()) -> None:
        self.terms = terms

    def __add__(self, other: Any) -> "Added":
        is_term = isinstance(other, int | float | complex | Tensor | Computed)
        return Added((*self.terms, other)) if is_term else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Added":
        is_term = isinstance(other, int | float | complex | Tensor)
        return Added((*self.terms, -other)) if is_term else NotImplemented

    def _refuse(self, *_: Any) -> NoReturn:
        raise CaptureError(
            "a number that forward counts up is read where it has no value: by forward itself, or "
            "in a process without the last stage"
        )

    __bool__ = __int__ = __float__ = __complex__ = __index__ = __hash__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __repr__ = __str__ = __format__ = _refuse


register_node(Computed, lambda x: ([x.tensor], None), lambda parts, _: Computed(*parts))
register_node(Added, lambda x: (list(x.terms), None), lambda parts, _: Added(tuple(parts)))


def is_stand_in(value: Any) -> bool:
    """Whether it stands for a number, which forward cannot read."""
    return isinstance(value, Computed | Added)


def without_numbers(value: Any) -> Any:
    """A nesting with None for each of both."""
    return tree_map(lambda x: None if is_stand_in(x) else x, value, is_leaf=is_stand_in)


def is_counted(value: Any) -> bool:
    """Whether something is added to in a nesting."""
    leaves = tree_leaves(value, is_leaf=is_stand_in)
    return any(isinstance(x, Added) and x.terms for x in leaves)


def _is_elsewhere(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def plain_value(value: Any, held: Any) -> Any:
    """What takes the place of `held`: a nesting in which both have become numbers."""
    return _placed(value, held, read=True)


def traced_value(value: Any, held: Any) -> Any:
    """The same while torch traces, where a computed number has no value."""
    return _placed(value, held, read=False)


def as_is(value: Any, _: Any) -> Any:
    """The nesting itself."""
    return value


def _placed(value: Any, held: Any, *, read: bool) -> Any:
    if isinstance(value, Computed):
        return value.number if read else value
    if isinstance(value, Added):
        terms = [_placed(term, None, read=read) for term in value.terms]
        if read and (isinstance(held, Added) or any(map(_is_elsewhere, terms))):
            return Added()
        total = held if isinstance(held, int | float | complex | Tensor | Added) else 0
        for term in terms:
            total = total + term
        return total
    if isinstance(value, dict):
        before = held if isinstance(held, Mapping) else {}
        made = copy.copy(value)
        for key, one in value.items():
            made[key] = _placed(one, before.get(key), read=read)
        return made
    if isinstance(value, list | tuple):
        old = list(held) if isinstance(held, list | tuple) else []
        pairs = zip(value, [*old, *[None] * len(value)], strict=False)
        items = [_placed(one, other, read=read) for one, other in pairs]
        if isinstance(value, list):
            return items
        return value._make(items) if hasattr(value, "_make") else tuple(items)
    return value
