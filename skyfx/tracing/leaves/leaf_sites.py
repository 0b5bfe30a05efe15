"""Where leaves come from: the kinds of places, why one stays whole, and why one cannot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from skyfx.solver.errors import CaptureError
from skyfx.tracing.data_dependence import OpSite
from skyfx.tracing.leaves.call_sites import CallSite
from skyfx.tracing.leaves.forward_lines import Lines


@dataclass(frozen=True, slots=True)
class FunctionSite:
    """All calls of an autograd function."""

    function: type

    def __str__(self) -> str:
        return self.function.__name__


LeafSite = CallSite | FunctionSite | Lines | OpSite
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why code stays whole.

    Attributes:
        text: what stands in it that cannot be captured as operators.
        is_shape: whether that is a shape which depends on values.
        is_trusted: whether it may return tensors whose shapes no other value has been tried on.
    """

    text: str = ""
    is_shape: bool = False
    is_trusted: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """Where the code of a model becomes leaves, for other captures of it to begin with.

    Attributes:
        calls: methods and functions.
        functions: autograd functions; None for each that cannot become a leaf.
        lines: of the model's own forward.
        operators: whose results are fixed.
        refused: kinds of calls, and lines, that cannot become leaves.
    """

    calls: tuple[CallSite, ...] = ()
    functions: tuple[tuple[type, FunctionSite | None], ...] = ()
    lines: tuple[Lines, ...] = ()
    operators: tuple[OpSite, ...] = ()
    refused: frozenset[Any] = frozenset()


NOWHERE = Places()
"""Where no code becomes a leaf."""


class CannotCrossError(CaptureError):
    """A value cannot cross the edge of a node.

    Attributes:
        variable: the local variable that holds it, where lines of forward were to become a leaf.
        is_argument: whether the leaf would get it; otherwise it would return it.
    """

    def __init__(self, message: str, variable: str, *, is_argument: bool) -> None:
        super().__init__(message)
        self.variable = variable
        self.is_argument = is_argument
