"""Calls of forward hooks that only observe.

While a model is captured they are put off, and what they are given becomes outputs of the graph.
They are called where all of it has arrived, after the last stage, micro-batch by micro-batch:

    plain torch    layer 1, hook, layer 2, hook, loss
    stages         layer 1, layer 2, hook, hook, loss

Those inside of code that stays whole are called where that runs, but not when it is measured.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from skyfx.runtime.batches.microbatch import OutputSpec
from skyfx.runtime.state.reachable_state import hooks_of
from skyfx.solver.errors import VerificationError

_stepping = threading.local()


@contextmanager
def within_step() -> Iterator[None]:
    """Within it, hooks inside of what stays whole are called in this thread."""
    _stepping.is_on = True
    try:
        yield
    finally:
        _stepping.is_on = False


class StepHook:
    """An observing hook in a copy of its module, for code that stays whole."""

    def __init__(self, hook: Any) -> None:
        self._hook = hook

    def __call__(self, *values: Any, **named: Any) -> None:
        """Call the hook, in a step."""
        if getattr(_stepping, "is_on", False):
            _check_returned(self._hook, self._hook(*values, **named))

    def __deepcopy__(self, memo: Any) -> "StepHook":
        return self


@dataclass(frozen=True, slots=True)
class HookCalls:
    """The calls of one forward, in their order.

    Attributes:
        hooks: of each call, the module and the hook.
        form: of the tuple of what each hook is given besides the module.
        changes: names of what they and code that stays whole have changed, which other processes
            do not see.
    """

    hooks: tuple[tuple[nn.Module, Any], ...]
    form: OutputSpec
    changes: frozenset[str]

    @classmethod
    def of(
        cls, calls: Sequence[tuple[nn.Module, Any, Any]], changes: frozenset[str]
    ) -> tuple["HookCalls", list[Tensor]]:
        """From module, hook and values of each call; also the tensors among the values."""
        form, tensors = OutputSpec.of(tuple(values for _, _, values in calls))
        return cls(tuple((module, hook) for module, hook, _ in calls), form, changes), tensors

    def make(self, tensors: Sequence[Tensor]) -> None:
        """Call those hooks that are still there."""
        for (module, hook), values in zip(self.hooks, self.form.restore(tensors), strict=True):
            if any(hook is each for each in hooks_of(module)):
                returned = hook(module, *values)
                if _noted is not None:
                    _noted.append((module, hook, returned))
                else:
                    _check_returned(hook, returned)


def _check_returned(hook: Any, returned: Any) -> None:
    if returned is not None:
        code = getattr(getattr(hook, "__func__", hook), "__code__", None)
        where = f" at {code.co_filename}:{code.co_firstlineno}" if code is not None else ""
        raise VerificationError(
            f"the forward hook {getattr(hook, '__qualname__', type(hook).__name__)}{where} returns "
            "a value now, and only observed when the model was captured, so the value would be "
            "lost: change what it reads between two steps, or register it when it intervenes"
        )


_noted: list[tuple[nn.Module, Any, Any]] | None = None


@contextmanager
def noted_calls() -> Iterator[list[tuple[nn.Module, Any, Any]]]:
    """Within it, the calls are noted, in any thread: yields module, hook and what it returned."""
    global _noted
    calls: list[tuple[nn.Module, Any, Any]] = []
    _noted = calls
    try:
        yield calls
    finally:
        _noted = None
