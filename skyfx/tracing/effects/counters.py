"""What a forward adds to, and never reads: it may be added where stages have run.

    self.calls += 1                        a constant comes to a number
    self.seen["tokens"] += mask.sum()      what comes to it is an output of the graph
    self.log.append(loss.item())           and so is what comes to a list

Two calls show what may be meant. A third one, with stand-ins that cannot be read in their places,
shows whether forward does no more than that.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from skyfx.runtime.execution.assigned_attributes import (
    AssignedAttributes,
    AttributeChange,
    Way,
)
from skyfx.runtime.state.python_numbers import Added, as_is
from skyfx.solver.errors import CaptureError

_refusing = [False]


@contextmanager
def reads_refused() -> Iterator[None]:
    """Within it, forward runs: it cannot read what is `AppendOnly`."""
    before, _refusing[0] = _refusing[0], True
    try:
        yield
    finally:
        _refusing[0] = before


def _refused(name: str) -> Callable[..., Any]:
    own = getattr(list, name)

    def read(self: "AppendOnly", *args: Any) -> Any:
        return self.refuse() if _refusing[0] else own(self, *args)

    return read


class AppendOnly(list[Any]):
    """A stand-in for a list, whose entries from before forward cannot read."""

    def __init__(self, held: list[Any]) -> None:
        super().__init__(held)
        self._num_before = list.__len__(self)

    def refuse(self) -> NoReturn:
        """Raise that forward reads it."""
        raise CaptureError("forward reads a list that it appends to as well")

    def __getitem__(self, key: Any) -> Any:
        num_new = list.__len__(self) - self._num_before
        if _refusing[0] and not (isinstance(key, int) and -num_new <= key < 0):
            self.refuse()
        return list.__getitem__(self, key)

    __len__, __iter__, __contains__ = map(_refused, ("__len__", "__iter__", "__contains__"))
    __reversed__, __eq__, __lt__ = map(_refused, ("__reversed__", "__eq__", "__lt__"))
    __delitem__, __setitem__ = map(_refused, ("__delitem__", "__setitem__"))
    pop, remove, index, count = map(_refused, ("pop", "remove", "index", "count"))
    copy, clear, sort, reverse = map(_refused, ("copy", "clear", "sort", "reverse"))
    insert = _refused("insert")


def put_stand_ins(model: nn.Module, counted: Mapping[str, AttributeChange]) -> None:
    """Put what cannot be read in place of numbers that are counted up."""
    form, tensors = AssignedAttributes.of(counted)
    form.leave(model, tensors, as_is)


def counters(
    remembered: Mapping[str, tuple[AttributeChange, AttributeChange | None]],
    is_alike: Callable[[Mapping[str, AttributeChange]], bool],
) -> dict[str, AttributeChange]:
    """Which attributes, that a call depends on, forward only counts up: stand-ins for them.

    Args:
        remembered: what the first call and the one after it do to them.
        is_alike: calls the model with stand-ins; whether it returns the same.
    """
    found: dict[str, AttributeChange] = {}
    for name, (one, other) in remembered.items():
        if other is None or one.way is Way.APPEND:
            continue
        if one.way is not other.way and (one.way, other.way) != (Way.UPDATE, Way.EXTEND):
            continue  # a list in a dict may be made by the first call
        with suppress(CaptureError):
            counted = {name: AttributeChange(one.way, _stand_ins(one.value, other.value, name))}
            if is_alike(counted):
                found |= counted
    return found


def _stand_ins(one: Any, other: Any, name: str = "") -> Any:
    """The first value with stand-ins for the numbers in it that the second has otherwise.

    A number that is an attribute itself, and in no container, has its name.

    Raises:
        CaptureError: something else differs.
    """
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        made = copy.copy(one)
        for key, x in one.items():
            made[key] = _stand_ins(x, other[key])
        return made
    if isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        items = [_stand_ins(x, y) for x, y in zip(one, other, strict=True)]
        return type(one)(items) if type(one) in (list, tuple) else one._make(items)  # type: ignore[union-attr]
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        return one if not one.is_meta and torch.equal(one, other) else Added(name=name)
    if _is_number(one) and _is_number(other):
        return one if one == other else Added(name=name)
    if type(one) is type(other) and one == other:
        return one
    raise CaptureError("more than numbers differs from call to call")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex) and not isinstance(value, bool)
