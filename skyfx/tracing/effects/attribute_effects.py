"""Which of the attributes that a forward assigns can be outputs of a captured graph.

Calls of the model show it, each but the first with what the first has left:

    renewed      the next call leaves the same    self.l_aux = aux      an output of the graph
    settled      only the first assigns it        if self.mask is None  stages make it each time
    counted      each call adds to it             self.calls += 1       what is added is an output
    remembered   the next call depends on it      self.state = f(...)   a buffer, or refused

The next call with the same inputs may leave the same although it depends on it, as a running
maximum does. So there are calls with other inputs before it as well.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.execution.assigned_attributes import (
    AssignedAttributes,
    AttributeChange,
    Way,
    replace_value,
)
from skyfx.runtime.model_state import preserve_run
from skyfx.runtime.pytree import tree_leaves, tree_map
from skyfx.runtime.rng.generator_state import preserve_generators
from skyfx.runtime.state.contents import content, equal
from skyfx.runtime.state.python_numbers import is_counted
from skyfx.solver.errors import CaptureError
from skyfx.tracing.effects.attribute_watch import AttributeWatch
from skyfx.tracing.effects.counters import AppendOnly, counters
from skyfx.tracing.effects.mutable_attributes import plain_tensors
from skyfx.tracing.failures import line_of
from skyfx.tracing.leaves.other_values import moved

Counted = Mapping[str, AttributeChange]
"""Stand-ins for what is counted up, by name: see `counters`."""

BatchCall = Callable[[Batch, Counted], Sequence[Tensor]]
"""Calls a model on a micro-batch with stand-ins."""

ModelCall = Callable[[Counted], Sequence[Tensor]]
"""The same on the micro-batch of the capture."""

_FORMS_ONLY = ("_like", "new_", "type_as", "expand_as", "view_as")
"""Parts of the names of operators that take the form of an argument, and not its values."""


@dataclass(frozen=True, slots=True)
class AttributeEffects:
    """What the calls have shown, by the attributes' names from the model on.

    Attributes:
        renewed: each call leaves them, whatever they were; also numbers that settle. The way is
            that of the second call: a list that forward clears and fills looks appended to while
            it is empty.
        settled: one call assigns them.
        counted: each call adds to them, and reads them for nothing else.
        remembered: a call depends on what the call before has left; what both have left.
    """

    renewed: Mapping[str, Way] = field(default_factory=dict)
    settled: frozenset[str] = frozenset()
    counted: Counted = field(default_factory=dict)
    remembered: Mapping[str, tuple[AttributeChange, AttributeChange | None]] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class _Call:
    """The outputs of a call, and what it has left."""

    outputs: list[Any]
    changes: Mapping[str, AttributeChange]
    contents: Mapping[str, Any]

    def differs_from(self, first: "_Call") -> bool:
        """Whether it shows that the first has gone before."""
        both = self.contents.keys() & first.contents.keys()
        return not (
            equal(self.outputs, first.outputs)
            and all(equal(self.contents[name], first.contents[name]) for name in both)
        )


def attribute_effects(model: nn.Module, batch: Batch, call: BatchCall) -> AttributeEffects:
    """Call a model some times; it is as before afterwards.

    Args:
        model: whose attributes are meant.
        batch: the micro-batch of the capture.
        call: calls it.

    Raises:
        CaptureError: a number is another one in each call, whatever was before.
    """
    run = partial(call, batch)
    with preserve_run(model):
        first, second = _call(model, run), _call(model, run)
    if second.differs_from(first):
        _check_repeats(model, run, first)
    remembered: dict[str, tuple[AttributeChange, AttributeChange | None]] = {}
    if second.differs_from(first):  # because of buffers, which may, or of attributes
        with suppress(Exception):
            second = _called_after(model, run, first, first.changes)
    if second.differs_from(first):
        for name in first.changes:
            with suppress(Exception):  # perhaps what it belongs to is not there
                after_it = _called_after(model, run, first, [name])
                if after_it.differs_from(first):
                    remembered[name] = first.changes[name], after_it.changes.get(name)
    remembered |= _remembered_of_others(model, batch, call, first, second, remembered)
    remembered |= {
        name: (first.changes[name], change)
        for name, change in second.changes.items()
        if change.way in (Way.APPEND, Way.EXTEND)
        if name in first.changes.keys() - remembered.keys()
        if not _only_appends(model, run, name, change)
    }
    # Without values, nothing shows that a tensor differs from call to call.
    unseen = {x: (y, y) for x, y in first.changes.items() if _has_no_values(y.value)}
    candidates = {**unseen, **remembered}
    counted = counters(candidates, lambda found: _returns_same(model, run, first, found))
    rest = first.changes.keys() - remembered.keys()
    plain = {name for name in rest if not AssignedAttributes.of({name: first.changes[name]})[1]}
    ways = {name: second.changes.get(name, first.changes[name]).way for name in first.changes}
    renewed = {name: ways[name] for name in rest & (second.changes.keys() | plain)}
    return AttributeEffects(
        renewed | {name: ways[name] for name in counted},
        frozenset(rest - renewed.keys()),
        counted,
        {name: both for name, both in remembered.items() if name not in counted},
    )


def _remembered_of_others(
    model: nn.Module,
    batch: Batch,
    call: BatchCall,
    first: _Call,
    second: _Call,
    known: Collection[str],
) -> dict[str, tuple[AttributeChange, AttributeChange | None]]:
    """What a call depends on, as calls with other inputs have left it, beside what is known."""
    run = partial(call, batch)

    def with_others(counted: Counted) -> Sequence[Tensor]:
        call(moved(batch, 3), counted)
        return call(moved(batch, -1), counted)

    found: dict[str, tuple[AttributeChange, AttributeChange | None]] = {}
    with suppress(Exception):  # the model may not run on them
        with preserve_run(model):
            others = _call(model, with_others)
        left = first.changes.keys() & others.changes.keys() - set(known)
        for name in left:
            one, is_moved = first.changes[name], name in second.changes
            if not is_moved and AssignedAttributes.of({name: one})[1]:
                continue  # a tensor that is kept: whether it may be is seen in the graph
            if equal(first.contents[name], others.contents[name]):
                continue
            after_it = _called_after(model, run, others, [name])
            if after_it.differs_from(first) or name not in after_it.changes:
                found[name] = one, after_it.changes.get(name, others.changes[name])
    return found


def _check_repeats(model: nn.Module, run: ModelCall, first: _Call) -> None:
    with preserve_run(model):
        again = _call(model, run)
    for name, change in first.changes.items():
        other = again.changes.get(name)
        is_plain = not any(isinstance(x, Tensor) for x in tree_leaves(change.value))
        if other and is_plain and not equal(first.contents[name], again.contents[name]):
            raise CaptureError(
                f"forward leaves {name!r} ({_said(change.value)}, then {_said(other.value)})"
                f"{line_of(model, name)}, which differs from call to call, such as a time.\n"
                "Take it out of forward: pipeline.profile measures times"
            )


def _called_after(model: nn.Module, run: ModelCall, first: _Call, left: Collection[str]) -> _Call:
    """Call the model with no more than these of the attributes that the first call has left."""
    with preserve_run(model):
        form, tensors = AssignedAttributes.of({name: first.changes[name] for name in left})
        form.leave(model, tensors)
        return _call(model, run)


def _returns_same(model: nn.Module, run: ModelCall, first: _Call, counted: Counted) -> bool:
    """Whether the model returns the same with stand-ins for what it counts up."""
    try:
        with preserve_run(model):
            call = _call(model, run, counted)
    except Exception:  # it reads one
        return False
    left = (call.changes[name].value for name in counted if name in call.changes)
    return any(map(is_counted, left)) and equal(call.outputs, first.outputs)


def _only_appends(model: nn.Module, run: ModelCall, name: str, change: AttributeChange) -> bool:
    """Whether the model runs without reading the lists that it appends to."""

    def unread(held: Any) -> Any:
        if change.way is Way.APPEND:
            return AppendOnly(held)
        lists = [key for key, one in change.value.items() if isinstance(one, list)]
        made = copy.copy(held)
        made.update({key: AppendOnly(made.get(key, [])) for key in lists})
        return made

    try:
        with preserve_run(model):
            replace_value(model, name, unread)
            run({})
    except Exception:
        return False
    return True


def _has_no_values(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _call(model: nn.Module, run: ModelCall, counted: Counted | None = None) -> _Call:
    watch = AttributeWatch(model)
    with preserve_generators():
        outputs = [content(x) for x in run(counted or {})]
    changes = {
        name: AttributeChange(way, tree_map(_copied, value))
        for name, (way, value) in watch.changes().items()
    }
    return _Call(outputs, changes, {name: content(x.value) for name, x in changes.items()})


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def remembered_tensors(model: nn.Module, effects: AttributeEffects) -> list[str]:
    """The attributes by which a call depends on the one before, each a plain tensor.

    Raises:
        CaptureError: one of them is none, or gets another shape: names it, its line and the cure.
    """
    plain = plain_tensors(model)
    for name, both in effects.remembered.items():
        one, other = (None if x is None else x.value for x in both)
        if name not in plain or len(set(map(_form, (plain[name], one, other)))) > 1:
            raise CaptureError(
                f"forward changes {name!r} ({_said(one)}, then {_said(other)})"
                f"{line_of(model, name)} and depends on that in the next call, which a captured "
                "graph cannot: keep it in a buffer of one shape (register_buffer), and write to "
                "that in place"
            )
    return list(effects.remembered)


def is_constant(node: Any, *, in_training: bool = True) -> bool:
    """Whether a value of a captured graph is the same in each call.

    It is, unless it is made of the values of inputs, is drawn, or is made of parameters that train.
    """
    if not isinstance(node, fx.Node):
        return True
    value = node.meta.get("val")
    trains = in_training and isinstance(value, Tensor) and value.requires_grad
    if node.op == "placeholder" or trains:
        return False
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return False
    given = node.all_input_nodes
    if any(part in str(node.target) for part in _FORMS_ONLY):
        given = given[:1] if "_as" in str(node.target) else []
    return all(is_constant(x, in_training=in_training) for x in given)


def _form(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else None


def _said(value: Any) -> str:
    """A content in some words."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    has_tensors = any(isinstance(x, Tensor) for x in tree_leaves(value))
    return f"{len(value)} entries" if has_tensors else f"{value!r:.60}"
