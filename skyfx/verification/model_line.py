"""The line of a model that its captured graph does not follow.

Both run once more, and note each value that they make: its shape, two sums over its numbers, and
the same of its gradient. The line where plain torch makes a value that the graph has nowhere, and
the graph one that plain torch has nowhere, is the first that differs.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from skyfx.runtime import pytree
from skyfx.tracing.capture import Capture
from skyfx.tracing.data_dependence import is_library_file
from skyfx.tracing.node_names import is_operator, op_name
from skyfx.tracing.training_mode import in_mode
from skyfx.verification.observation import RunMode, observed, plain_outputs, weighted_sum, weights

CodeLine = tuple[str, int]
"""A file and a line of it."""

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(slots=True)
class Made:
    """A value that a run has made.

    Attributes:
        function: the name of torch's function or operator.
        lines: the model's lines that were under way, the innermost last.
        sums: the norm and a weighted sum.
        gradient: the same of its gradient; None for none.
    """

    function: str
    lines: Sequence[CodeLine]
    shape: torch.Size
    sums: tuple[float, float]
    gradient: tuple[float, float] | None = None


def deviating_line(model: nn.Module, captured: Capture, how: RunMode, tolerance: float) -> str:
    """Where the model does what the captured graph does not, as ` at FILE:LINE` or empty.

    Args:
        model: as a whole on the CPU; it is as before afterwards.
        captured: the graph.
        how: with gradients or without.
        tolerance: in parts of a sum.
    """
    plain, staged = _Notes(), _Notes()
    tensors = [x.clone() for x in captured.microbatch.tensors]

    def run_plain() -> dict[str, Any]:
        with in_mode(model, training=how.training), _AtLines(plain):
            _, outputs = plain_outputs(model, captured.microbatch)
        return _backward(outputs, how)

    def run_graph() -> dict[str, Any]:
        return _backward(_Noted(captured.module, staged).run(*tensors), how)

    observed(model, run_plain, how)
    observed(model, run_graph, how)
    found = _first(plain.made, staged.made, tolerance)
    return "" if found is None else " at {}:{}".format(*found.lines[-1])


def _backward(outputs: Sequence[Tensor], how: RunMode) -> dict[str, Any]:
    if how.backward:
        weighted_sum(outputs).backward()  # type: ignore[no-untyped-call]
    return {}


def _first(plain: Sequence[Made], graph: Sequence[Made], tolerance: float) -> Made | None:
    """The value of plain torch at which the graph begins to differ."""
    same = [[y for y in graph if _is_same(x, y, tolerance)] for x in plain]
    known = {id(y) for found in same for y in found}
    others = {(y.lines[-1], y.function) for y in graph if id(y) not in known}
    apart = {line for line, _ in others}
    new = [x for x, found in zip(plain, same, strict=True) if not found and apart & {*x.lines}]
    if new:  # a value of the same function says most: nothing may read the others
        alike = (x for x in new if others & {(line, x.function) for line in x.lines})
        return next(alike, new[0])
    # All values are there, so a gradient goes another way; backward begins at the end.
    for x, found in reversed([*zip(plain, same, strict=True)]):
        if found and not any(_is_near(x.gradient, y.gradient, tolerance) for y in found):
            return x
    return None


def _is_same(x: Made, y: Made, tolerance: float) -> bool:
    return x.shape == y.shape and _is_near(x.sums, y.sums, tolerance)


def _is_near(
    one: tuple[float, float] | None, other: tuple[float, float] | None, tolerance: float
) -> bool:
    if one is None or other is None:
        return one is other
    size = max(abs(one[0]), abs(other[0]))
    return all(
        abs(a - b) <= tolerance * size or a == b or (a != a and b != b)
        for a, b in zip(one, other, strict=True)
    )


@dataclass(slots=True)
class _Notes:
    """The values that a run makes, in order."""

    made: list[Made] = field(default_factory=list)

    def add(self, function: str, value: Any, lines: Sequence[CodeLine]) -> None:
        for x in pytree.tree_leaves(value):
            if not isinstance(x, Tensor) or not x.is_floating_point() or not lines:
                continue
            made = Made(function, lines, x.shape, _sums(x))
            self.made.append(made)
            if x.requires_grad:
                x.register_hook(lambda gradient, made=made: _note(made, gradient))  # type: ignore[no-untyped-call]


def _note(made: Made, gradient: Tensor) -> None:
    made.gradient = _sums(gradient)


def _sums(x: Tensor) -> tuple[float, float]:
    x = x.detach().double()
    return float(x.norm()), float((x * weights(x)).sum())


class _AtLines(TorchFunctionMode):
    """Notes what torch's functions return to lines of the model."""

    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self._notes = notes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        self._notes.add(name, returned, _lines_under_way())
        return returned


class _Noted(fx.Interpreter):
    """Notes what the nodes of a graph make."""

    def __init__(self, module: fx.GraphModule, notes: _Notes) -> None:
        super().__init__(module)
        self._notes = notes

    def run_node(self, n: fx.Node) -> Any:
        returned = super().run_node(n)
        if is_operator(n):
            frames = _FRAME.findall(n.meta.get("stack_trace") or "")
            lines = [(file, int(line)) for file, line in frames if not is_library_file(file)]
            self._notes.add(op_name(n).split(".")[:2][-1], returned, lines)
        return returned


def _lines_under_way() -> list[CodeLine]:
    lines: list[CodeLine] = []
    frame = sys._getframe(2)
    while frame.f_back:
        if not is_library_file(frame.f_code.co_filename):
            lines.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return lines[::-1]
