"""What one call takes: its forward and its backward, by torch's own benchmark timer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.benchmark import Timer

__all__: list[str] = ["CallTime", "backward_of", "measure_call", "seconds", "signature"]

MIN_RUN_S = 0.02
"""Least time of each measurement; torch's timer repeats a call until it is reached."""


@dataclass(frozen=True, slots=True)
class CallTime:
    """Seconds of one call forward, and of its backward (None where no gradient flows)."""

    forward_s: float
    backward_s: float | None


def seconds(call: Callable[[], Any], num_threads: int, min_run_s: float = MIN_RUN_S) -> float:
    """The median time of a call; the timer warms up, synchronises and repeats."""
    timer = Timer("call()", globals={"call": call}, num_threads=num_threads)
    return float(timer.blocked_autorange(min_run_time=min_run_s).median)


def signature(target: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """What a call's time depends on: the operator, and shapes, strides, dtypes and constants."""

    def describe(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            kind = isinstance(leaf, nn.Parameter), leaf.requires_grad
            return leaf.shape, leaf.stride(), leaf.dtype, kind
        return id(leaf) if isinstance(leaf, nn.Module) else repr(leaf)

    leaves, spec = pytree.tree_flatten((args, kwargs))
    return (str(target), str(spec), *map(describe, leaves))


def measure_call(
    target: Callable[..., Any], args: Any, kwargs: Any, *, training: bool, num_threads: int
) -> CallTime:
    """Time an operator on copies of its arguments.

    Args:
        target: the operator.
        args: its positional arguments, with real values: indices must be in range.
        kwargs: its keyword arguments.
        training: with gradients recorded in forward, and backward measured too. (Without them a
            forward is up to a fifth faster.)
        num_threads: torch threads to time with.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    copies = [_copy(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    own_args, own_kwargs = pytree.tree_unflatten(copies, spec)
    mutable = getattr(getattr(target, "_schema", None), "is_mutable", False)
    # An operator that writes in place cannot be repeated on a leaf that records gradients.
    with torch.set_grad_enabled(training and not mutable):
        forward_s = seconds(lambda: target(*own_args, **own_kwargs), num_threads)
    tensors = [leaf for leaf in copies if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not training or not tensors:
        return CallTime(forward_s, None)
    with torch.enable_grad():
        if mutable:
            copies = [x * 1 if isinstance(x, Tensor) and x.requires_grad else x for x in copies]
            own_args, own_kwargs = pytree.tree_unflatten(copies, spec)
        backward = backward_of(target(*own_args, **own_kwargs), tensors)
    return CallTime(forward_s, backward and seconds(backward, num_threads))


def backward_of(outputs: Any, tensors: Sequence[Tensor]) -> Callable[[], None] | None:
    """A call that runs backward from the outputs to the tensors, and can be repeated.

    A parameter's gradient is added to an earlier one, as every micro-batch but the first does; no
    `.grad` is touched. None where no gradient flows.
    """
    found = [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if not found or not tensors:
        return None
    gradients = [torch.ones_like(x) for x in found]
    sums = [torch.zeros_like(x) if isinstance(x, nn.Parameter) else None for x in tensors]

    def backward() -> None:
        computed = torch.autograd.grad(
            found, tensors, gradients, retain_graph=True, allow_unused=True
        )
        for sum_, gradient in zip(sums, computed, strict=True):
            if sum_ is not None and gradient is not None:
                sum_.add_(gradient)

    return backward


def _copy(tensor: Tensor) -> Tensor:
    """A copy with an autograd graph of its own, still a parameter if it was one."""
    copy = tensor.detach().clone(memory_format=torch.preserve_format)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copy, tensor.requires_grad)
    return copy.requires_grad_(tensor.requires_grad)
