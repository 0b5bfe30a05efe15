"""What a forward leaves on attributes of the model's modules, besides what it returns.

    self.l_aux = aux              SET: another object than before
    self.stats["aux"] = aux       REFILL: the same dict or list with other items
    self.losses.append(aux)       APPEND: the same list with more at its end

In a captured graph the tensors of these values are further outputs. The runtime puts them where
plain torch has them: before the loss of each micro-batch, or after its inference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from torch import Tensor, nn

from skyfx.runtime.execution.microbatch import OutputSpec
from skyfx.runtime.pytree import flatten


class Way(Enum):
    """How a value comes to an attribute."""

    SET = "set"
    REFILL = "refill"
    APPEND = "append"


class Change(NamedTuple):
    """What a forward has done to one attribute; `value` is the new one, or what was appended."""

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
    def of(cls, changes: Mapping[str, Change]) -> tuple["AssignedAttributes", list[Tensor]]:
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

    def leave(self, model: nn.Module, tensors: Sequence[Tensor]) -> None:
        """Do to the model's attributes what forward does, with these tensors."""
        for (name, way), value in zip(self.ways, self.form.restore(tensors), strict=True):
            module, key = _place(model, name)
            held: Any = getattr(module, key, None)
            if way is Way.SET or type(held) is not type(value):
                setattr(module, key, value)
                continue
            if way is Way.REFILL:
                held.clear()
            fill = held.update if isinstance(value, Mapping) else held.extend
            fill(value)

    def leave_empty(self, model: nn.Module, tensors: Sequence[Tensor]) -> None:
        """The same with tensors without values, where another process has them.

        A list keeps those of the last call only: who empties it has the values.
        """
        for name, way in self.ways:
            module, key = _place(model, name)
            if way is Way.APPEND:
                held = getattr(module, key)
                held[:] = [x for x in held if not (isinstance(x, Tensor) and x.is_meta)]
        self.leave(model, tensors)

    def tensors_on(self, model: nn.Module) -> list[Tensor]:
        """The tensors that a call has left on the model."""
        marks = [object() for _ in range(self.form.num_tensors)]
        found: list[Tensor] = []
        for (name, _), value in zip(self.ways, self.form.restore(marks), strict=True):
            module, key = _place(model, name)
            held = [x for x in flatten(getattr(module, key, None))[0] if isinstance(x, Tensor)]
            found += held[len(held) - sum(x in marks for x in flatten(value)[0]) :]
        return found


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has the attribute, and its name there."""
    path, _, key = name.rpartition(".")
    return model.get_submodule(path), key
