"""What torch and Python keep for each thread: threads of stages have it from their caller.

    ContextVar                             the caller's values
    with save_on_cpu():                    hooks of saved tensors
    torch.set_default_device("cuda")       for tensors that `loss_fn` makes
    with FlopCounterMode():                refused: a mode would see other calls than in plain torch

Autocast is not among it, since backward is outside of it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from skyfx.runtime.state.contents import is_foundation

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CallerModes:
    """Those of a thread that calls a pipeline.

    Attributes:
        context: the values of its context variables.
        saved: packs and unpacks tensors that autograd saves; None if nothing does.
        device: of tensors that are made without one.
    """

    context: Context
    saved: tuple[Callable[..., Any], Callable[..., Any]] | None
    device: torch.device

    @classmethod
    def here(cls) -> "CallerModes":
        """Those of this thread.

        Raises:
            ValueError: a mode sees each operator, of this thread alone.
        """
        for mode in _get_current_dispatch_mode_stack():
            raise ValueError(
                f"the call is within a TorchDispatchMode, {type(mode).__name__}, which sees this "
                "thread alone, and stages run in others: call the model itself within it, or "
                "partition it over one device"
            )
        saved = torch._C._autograd._top_saved_tensors_default_hooks(True)
        return cls(copy_context(), saved, torch.get_default_device())

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function with them in another thread."""
        with ExitStack() as around:
            if self.saved is not None:
                around.enter_context(torch.autograd.graph.saved_tensors_hooks(*self.saved))
            if self.device != torch.get_default_device():
                around.enter_context(self.device)
            return self.context.copy().run(function, *args)


def check_function_modes() -> None:
    """A mode of the user's sees the functions that forward calls, and stages run operators.

    Raises:
        ValueError: this thread is within one.
    """
    for mode in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        if not is_foundation(type(mode).__module__):
            raise ValueError(
                f"the call is within a TorchFunctionMode, {type(mode).__name__}, which sees the "
                "functions that forward calls, and stages run operators: enter it in forward"
            )
