"""What a forward asks of autograd beside operators, so that a captured graph does the same.

    with torch.inference_mode():        gradients are switched off, as by `torch.no_grad`
    weight.data                         the tensor without its gradient
    checkpoint(use_reentrant=True)      a plain call, or one without gradients
    Round.apply(x)                      custom gradients: the call becomes a leaf
    torch.autograd.grad(y, x)           a derivative: the call around it becomes a leaf
    with saved_tensors_hooks(...):      autograd saves something else: as for a derivative
    @torch.jit.script                   a plain call, also where torch.jit has gradients of its own

torch.export looks into the forward of an autograd function, and forgets its backward. A derivative
that it follows would have a gradient of its own, or lack one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from skyfx.runtime.model_state import attribute_slots
from skyfx.runtime.pytree import tree_leaves
from skyfx.runtime.state.contents import is_foundation
from skyfx.runtime.state.written_parameters import GET_DATA, SET_DATA
from skyfx.solver.errors import CaptureError
from skyfx.tracing.effects.recomputed_writes import marked_checkpoint
from skyfx.tracing.torch_internals import (
    around_checkpoints,
    checked_calls,
    checked_derivatives,
    checked_hooks,
    checked_vmap,
    inference_modes_as_grad_modes,
    is_reentrant_checkpoint,
    replaced_functions,
    scripts_as_at_first,
    storage_id,
)


class CustomGradientError(CaptureError):
    """An autograd function has a gradient of its own.

    Attributes:
        function: the function's class.
    """

    def __init__(self, function: type) -> None:
        super().__init__(
            f"{function.__name__}.backward would be lost, because a captured graph has the "
            "gradients of torch's operators only. Write it with torch's operators, or make it one "
            "by torch.library.custom_op and register_autograd; remove backward hooks"
        )
        self.function = function


class DerivativeError(CaptureError):
    """Forward computes a derivative."""

    def __init__(self) -> None:
        super().__init__(
            "forward computes a derivative (torch.autograd.grad, torch.func), and a captured graph "
            "cannot be cut inside it. Put these lines, with all that they differentiate, into the "
            "forward of a submodule, which then stays whole"
        )


class BackwardError(CaptureError):
    """Forward adds to gradients."""

    def __init__(self) -> None:
        super().__init__(
            "forward calls `backward`, which would add to gradients whenever a stage runs: compute "
            "the derivative by torch.autograd.grad"
        )


class BatchedError(CaptureError):
    """Forward uses torch.vmap, which changes what the operators inside compute."""

    def __init__(self) -> None:
        super().__init__(
            "forward uses torch.vmap, and a captured graph cannot be cut inside it. Put the lines "
            "with it into the forward of a submodule, which then stays whole"
        )


class HookError(CaptureError):
    """A tensor has a hook for its gradient."""

    def __init__(self) -> None:
        super().__init__(
            "a tensor's hook would be lost, because a captured graph has the gradients of torch's "
            "operators only. Put the lines from there on into the forward of a submodule"
        )


class SavedTensorsError(CaptureError):
    """Forward changes what autograd saves."""

    def __init__(self) -> None:
        super().__init__(
            "forward changes what autograd saves (saved_tensors_hooks), and a captured graph does "
            "not. Put the lines within it into the forward of a submodule, which then stays whole"
        )


class _DataAsOperator(TorchFunctionMode):
    """Within it, `x.data` is an operator, and `x.data = y` writes to x, so that both are traced."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == GET_DATA:
            return torch.ops.aten.data(args[0])
        if func == SET_DATA:
            x, values = args
            if (x.shape, x.dtype) != (values.shape, values.dtype):
                raise CaptureError(
                    f"forward sets the `data` of a tensor {tuple(x.shape)} to a tensor of another "
                    f"form, {tuple(values.shape)}: make a new tensor instead"
                )
            torch.ops.aten.data(x).copy_(values.detach())
            return None
        return func(*args, **(kwargs or {}))


@contextmanager
def traceable(*, training: bool) -> Iterator[None]:
    """Within it, torch.export meets nothing of autograd that it would take otherwise than eagerly.

    Args:
        training: whether gradients matter.

    Raises:
        CaptureError: forward has a gradient of its own, or computes one.
    """

    def apply(function: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
        is_on = torch.is_grad_enabled()
        differentiable = is_on and _needs_gradient(args)
        # Torch switches gradients off without telling torch.export, which would not notice that a
        # `no_grad` inside ends.
        mode = torch.set_grad_enabled(is_on and (differentiable or not training))
        if is_reentrant_checkpoint(function):
            run, _, *given = args
            with mode, marked_checkpoint():
                return run(*given)
        if differentiable and training:
            raise CustomGradientError(function)
        with mode:
            return own(*args, **kwargs)

    def refuse_hook(tensor: Tensor, *_: Any) -> None:
        if training and torch.is_grad_enabled() and tensor.requires_grad:
            raise HookError

    def refuse_packing(hooks: Any) -> None:
        kind = type(hooks)
        if training and (kind is saved_tensors_hooks or not is_foundation(kind.__module__)):
            raise SavedTensorsError

    def refuse_derivative(adds: bool) -> None:
        if adds:
            raise BackwardError
        raise DerivativeError

    def refuse_batched(*_: Any) -> None:
        raise BatchedError

    with (
        _DataAsOperator(),
        scripts_as_at_first(),
        replaced_functions(apply),
        inference_modes_as_grad_modes(),
        checked_hooks(refuse_hook),
        checked_calls(saved_tensors_hooks, "__enter__", refuse_packing),
        checked_derivatives(refuse_derivative),
        checked_vmap(refuse_batched),
        around_checkpoints(marked_checkpoint),
    ):
        yield


def check_constants(model: nn.Module, constants: Mapping[str, Any]) -> None:
    """Refuse attributes that get a gradient and are no parameters, which a graph has as constants.

    Nobody reads the gradient of a buffer, or of a tensor that forward itself makes.

    Args:
        model: the model.
        constants: those of its graph.

    Raises:
        CaptureError: names the first one, and the cure.
    """
    held = {
        storage_id(x): slot.name
        for path, module in model.named_modules()
        for slot in attribute_slots(module, f"{path}." if path else "")
        for x in tree_leaves(slot.value)
        if isinstance(x, Tensor) and x.requires_grad
    }
    for x in constants.values():
        if isinstance(x, Tensor) and storage_id(x) in held:
            raise CaptureError(
                f"the tensor in {held[storage_id(x)]!r} requires a gradient and is no parameter, "
                "so no stage would own it: make it one (self.scale = torch.nn.Parameter(...))"
            )


def _needs_gradient(args: Any) -> bool:
    return any(isinstance(x, Tensor) and x.requires_grad for x in args)
