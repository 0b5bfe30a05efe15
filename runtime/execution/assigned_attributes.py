"""What a forward leaves on attributes of the model's modules, besides what it returns.

    self.l_aux = aux              SET: another object than before
    self.stats["aux"] = aux       UPDATE: the same dict with more, or other, entries
    self.losses.append(aux)       APPEND: the same list or deque with more at its end
    self.log["aux"].append(aux)   EXTEND: the same dict, in whose lists is more
    self.losses.clear()           REFILL: the same dict or list with other items

In a captured graph the tensors of these values are further outputs, and so are numbers that are
computed. The runtime puts them where plain torch has them: before the loss of each micro-batch, or
after its inference.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from typing import Any, NamedTuple

from torch import Tensor, nn

from skyfx.runtime.batches.microbatch import OutputSpec
from skyfx.runtime.pytree import flatten
from skyfx.runtime.state.python_numbers import Added, names_in, plain_value, without_numbers
from skyfx.runtime.state.reachable_state import reachable_slots


class Way(Enum):
    """How a value comes to an attribute."""

    SET = "set"
    REFILL = "refill"
    UPDATE = "update"
    APPEND = "append"
    EXTEND = "extend"


class AttributeChange(NamedTuple):
    """What a forward has done to one attribute; `value` is the new one, or what has come to it."""

    way: Way
    value: Any


@dataclass(frozen=True, slots=True)
class AssignedAttributes:
    """The form of what a forward leaves on attributes.

    Attributes:
        ways: by the attribute's name from the model on, in the order of the values.
        form: of the tuple of values.
    """

    ways: tuple[tuple[str, Way], ...]
    form: OutputSpec

    @classmethod
    def of(
        cls, changes: Mapping[str, AttributeChange]
    ) -> tuple["AssignedAttributes", list[Tensor]]:
        """The form of these changes, and the tensors among their values."""
        form, tensors = OutputSpec.of(tuple(change.value for change in changes.values()))
        return cls(tuple((name, change.way) for name, change in changes.items()), form), tensors

    @property
    def names(self) -> frozenset[str]:
        """The attributes' names."""
        return frozenset(name for name, _ in self.ways)

    def by(self, ways: Mapping[str, Way]) -> "AssignedAttributes":
        """The same values, which come to their attributes in these ways."""
        return AssignedAttributes(tuple((name, ways[name]) for name, _ in self.ways), self.form)

    def leave(
        self,
        model: nn.Module,
        tensors: Sequence[Tensor],
        made: Callable[[Any, Any, Mapping[str, Any]], Any] = plain_value,
    ) -> None:
        """Do to the model's attributes what forward does, with these tensors.

        Args:
            model: has the attributes.
            tensors: of their values.
            made: a value as it is left, from it, what the attribute holds before, and what others
                have held that it is computed from.
        """
        values = self.form.restore(tensors)
        read = dict.fromkeys(names_in(values)) if made is plain_value else ()
        before = {name: _Holder(model, name).value for name in read}
        for (name, way), given in zip(self.ways, values, strict=True):
            holder = _Holder(model, name)
            held = holder.value
            value = made(given, None if way is Way.APPEND else held, before)
            if isinstance(value, Added):  # another process has it: here it can be computed with
                value = Added(value.terms, value.name or name)
            if way is Way.APPEND and isinstance(held, deque):  # of which a list has come to it
                held.extend(value)
                continue
            if way is Way.SET or type(held) is not type(value):
                holder.put(value)
                continue
            if way is Way.REFILL:
                held.clear()
            if isinstance(value, Mapping):
                for key, one in value.items():  # `update` of a `Counter` adds
                    if way is Way.EXTEND and isinstance(one, list) and key in held:
                        held[key].extend(one)
                    else:
                        held[key] = one
            else:
                held.extend(value)

    def leave_empty(self, model: nn.Module, tensors: Sequence[Tensor]) -> None:
        """The same with tensors without values, where another process has them.

        A list keeps those of the last call only: who empties it has the values.
        """
        for name, way in self.ways:
            if way is Way.APPEND:
                held = _Holder(model, name).value
                kept = [x for x in held if not (isinstance(x, Tensor) and x.is_meta)]
                held.clear()
                held.extend(kept)
        self.leave(model, tensors)

    def tensors_on(self, model: nn.Module) -> list[Tensor]:
        """The tensors that a call has left on the model."""
        marks = [object() for _ in range(self.form.num_tensors)]
        found: list[Tensor] = []
        for (name, way), value in zip(self.ways, self.form.restore(marks), strict=True):
            holder, held = [value], [_Holder(model, name).value]
            if way is Way.EXTEND:
                holder, held = list(value.values()), [held[0][key] for key in value]
            for one, here in zip(holder, held, strict=True):
                tensors = [x for x in flatten(here)[0] if isinstance(x, Tensor)]
                num_left = sum(x in marks for x in flatten(without_numbers(one))[0])
                found += tensors[len(tensors) - num_left :]
        return found


class _Holder:
    """Where a value is left: an attribute, or a variable that a hook or a forward reaches."""

    def __init__(self, model: nn.Module, name: str) -> None:
        slots = {slot.name: slot for slot in reachable_slots(model)} if ":" in name else {}
        self._slot = slots.get(name)
        self._place = None if ":" in name else place_of(model, name)

    @property
    def value(self) -> Any:
        """What is there now; None if there is nothing."""
        if self._place is not None:
            return getattr(*self._place, None)
        return None if self._slot is None else self._slot.value

    def put(self, value: Any) -> None:
        """Put a value there, if there is such a place."""
        if self._place is not None:
            setattr(*self._place, value)
        elif self._slot is not None:
            self._slot.put(value)


def replace_value(model: nn.Module, name: str, by: Callable[[Any], Any]) -> None:
    """Put what a function makes of an attribute's value in its place."""
    holder = _Holder(model, name)
    holder.put(by(holder.value))


def place_of(model: nn.Module, name: str) -> tuple[Any, str]:
    """The module, or the object that a module holds, which has the attribute; its name there."""
    path, _, key = name.rpartition(".")
    return reduce(getattr, path.split("."), model) if path else model, key
