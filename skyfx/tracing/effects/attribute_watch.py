"""Sees what code leaves on the attributes of modules."""

import copy
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from skyfx.runtime.batches.microbatch import RETURNED
from skyfx.runtime.execution.assigned_attributes import AttributeChange, Way, place_of
from skyfx.runtime.model_state import module_slots, state_slots
from skyfx.runtime.pytree import flatten, tree_map
from skyfx.runtime.state.code_walk import Slot
from skyfx.runtime.state.contents import items_of
from skyfx.runtime.state.python_numbers import Computed

_NUMBERS = (bool, int, float, complex)
_PLAIN = (*RETURNED, type(None))
_MISSING = object()


class AttributeWatch:
    """Remembers the attributes of a module and its submodules, to say later which have changed.

    It compares objects, not values, and so also works while torch traces. Tensors that are written
    in place are the same objects.
    """

    def __init__(self, model: nn.Module, *, reachable: bool = True) -> None:
        """Look at the attributes as they are.

        Args:
            model: the module.
            reachable: whether also at what its hooks and its code reach beside them.
        """
        self._model, self._reachable = model, reachable
        self._before = {
            name: (slot.value, _parts(slot.value)) for name, slot in self._slots().items()
        }

    def changes(self) -> dict[str, AttributeChange]:
        """What has become of which attribute since, where it can be brought back.

        That is where the new value is a tensor, a plain value, or a nesting of them.
        """
        found: dict[str, AttributeChange] = {}
        known: set[int] = set()
        for name, slot in self._slots().items():
            before, parts = self._before.get(name, (_MISSING, None))
            change = _change(before, parts, slot.value)
            if change is None or not _has_only(change.value, Tensor, *_PLAIN):
                continue
            if change.way is not Way.SET:  # a list may have several names
                if id(slot.value) in known:
                    continue
                known.add(id(slot.value))
            found[name] = change
        return found

    def computed_changes(self) -> dict[str, AttributeChange]:
        """The same, with numbers as what is computed: they may be others next time."""
        return {
            name: AttributeChange(way, tree_map(_computed, value))
            for name, (way, value) in self.changes().items()
        }

    def put_back(self, names: Collection[str] | None = None) -> None:
        """Give these attributes of the modules, or all, the object and the items that they had."""
        now = self._slots()
        asked = now.keys() | self._before.keys() if names is None else set(names)
        for name in asked & (now.keys() - self._before.keys()):
            delattr(*place_of(self._model, name))
        for name, (value, parts) in self._before.items():
            if name not in asked:
                continue
            if name not in now or now[name].value is not value:
                setattr(*place_of(self._model, name), value)
            _refill(value, parts)

    def _slots(self) -> dict[str, Slot]:
        found = state_slots(self._model) if self._reachable else module_slots(self._model)
        return {slot.name: slot for slot in found}


def _parts(value: Any) -> Any:
    """The items of a container, and of the containers in it."""
    if isinstance(value, Mapping):
        return {key: (one, _parts(one)) for key, one in items_of(value).items()}
    if isinstance(value, list | tuple | deque):
        return [(one, _parts(one)) for one in value]
    return None


def _is_same(one: Any, other: Any) -> bool:
    """Whether two parts are the same objects with the same parts."""
    (value, parts), (value_then, parts_then) = one, other
    if isinstance(value, _PLAIN) and type(value) is type(value_then):
        return bool(value == value_then) or value is value_then
    return value is value_then and _have_same(parts, parts_then)


def _have_same(parts: Any, parts_then: Any) -> bool:
    if isinstance(parts, dict) and isinstance(parts_then, dict):
        same_keys = list(parts) == list(parts_then)
        return same_keys and all(_is_same(parts[key], parts_then[key]) for key in parts)
    if isinstance(parts, list) and isinstance(parts_then, list):
        same_length = len(parts) == len(parts_then)
        return same_length and all(map(_is_same, parts, parts_then))
    return parts is parts_then


def _change(before: Any, parts_then: Any, value: Any) -> AttributeChange | None:
    parts = _parts(value)
    if isinstance(value, deque) and value is before:
        num_new = _num_new(parts_then, parts, value.maxlen)
        if num_new is not None:
            new = list(value)[len(value) - num_new :]
            return AttributeChange(Way.APPEND, new) if new else None
    if _is_same((value, parts), (before, parts_then)):
        return None
    if value is not before:
        return AttributeChange(Way.SET, value)
    if new := _appended(before, parts_then, value, parts):
        return AttributeChange(Way.APPEND, new)
    if isinstance(value, dict) and parts.keys() >= parts_then.keys():
        new = [key for key in value if key not in parts_then]
        other = [key for key in parts_then if not _is_same(parts[key], parts_then[key])]
        entries = copy.copy(value)
        for key in value.keys() - {*new, *other}:
            del entries[key]
        longer = {key: _appended(*parts_then[key], *parts[key]) for key in other}
        if any(longer.values()) and all(
            x or not isinstance(entries[k], list) for k, x in longer.items()
        ):
            entries.update({key: x for key, x in longer.items() if x})
            return AttributeChange(Way.EXTEND, entries)
        return AttributeChange(Way.UPDATE, entries)
    return AttributeChange(Way.REFILL, value)


def _appended(before: Any, parts_then: Any, value: Any, parts: Any) -> list[Any]:
    """What has come to the end of the same list."""
    if value is not before or not isinstance(value, list):
        return []
    num = len(parts_then)
    return value[num:] if _have_same(parts[:num], parts_then) else []


def _num_new(then: Any, now: Any, most: int | None) -> int | None:
    """How many items have come to a deque, which may have dropped its first; None if others went.

    An item equals itself alone: the next loss may be the same number.
    """
    old, items = [one for one, _ in then], [one for one, _ in now]
    for new in range(len(items) + 1):
        num_kept = len(items) - new
        is_full = num_kept == len(old) or len(items) == most
        kept = old[len(old) - num_kept :] if num_kept <= len(old) and is_full else None
        if kept is not None and all(x is y for x, y in zip(kept, items[:num_kept], strict=True)):
            return new
    return None


def _computed(leaf: Any) -> Any:
    return Computed.of(leaf) if isinstance(leaf, _NUMBERS) else leaf


def _has_only(value: Any, *types: type) -> bool:
    return all(isinstance(leaf, types) for leaf in flatten(value)[0])


def _refill(value: Any, parts: Any) -> None:
    if isinstance(value, dict) and isinstance(parts, dict):
        if not _have_same(_parts(value), parts):
            value.clear()
            value.update({key: one for key, (one, _) in parts.items()})
        for one, inner in parts.values():
            _refill(one, inner)
    elif isinstance(parts, list):
        if isinstance(value, list | deque) and not _have_same(_parts(value), parts):
            value.clear()
            value.extend(one for one, _ in parts)
        for one, inner in parts:
            _refill(one, inner)
