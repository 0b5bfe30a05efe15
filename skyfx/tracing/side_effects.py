"""What a forward may do that a captured graph would leave out in silence: refused instead.

The graph holds operators. It has no place for

    gradients of the model's own making    autograd functions, hooks
    numbers from outside torch             `random`, `numpy.random`
    the state of Python objects            `self.calls += 1`, `self.mean = new_mean`

and would go on with what stood there when the model was captured.
"""

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch._functorch import apis

from skyfx.runtime.rng.generator_state import comparable_states, preserve_generators
from skyfx.solver.errors import CaptureError

__all__: list[str] = [
    "check_buffers",
    "check_numbers",
    "numbers",
    "numbers_kept",
    "refuse_custom_autograd",
    "refuse_foreign_rng",
    "refuse_vmap",
    "set_numbers",
]


@contextmanager
def refuse_custom_autograd() -> Iterator[None]:
    """Within it, a gradient that is not torch's own is refused, in this thread.

    torch.export looks into an autograd function's forward and forgets its backward.
    """
    here = threading.get_ident()
    apply: Any = vars(torch.autograd.Function)["apply"]
    register_hook: Any = Tensor.register_hook

    def checked_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        # What torch uses inside, as for `torch.library.custom_op`, is part of an operator.
        if threading.get_ident() == here and not cls.__module__.startswith("torch._"):
            _refuse_gradient(f"{cls.__name__}.backward", args)
        return apply.__func__(cls, *args, **kwargs)

    def checked_hook(tensor: Tensor, hook: Any) -> Any:
        if threading.get_ident() == here:
            _refuse_gradient("a tensor's hook", (tensor,))
        return register_hook(tensor, hook)

    with (
        _replaced(torch.autograd.Function, "apply", classmethod(checked_apply)),
        _replaced(Tensor, "register_hook", checked_hook),
    ):
        yield


@contextmanager
def _replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    """Within it, the class has this attribute: its own, even where it inherits one."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _refuse_gradient(what: str, args: Any) -> None:
    differentiable = any(isinstance(x, Tensor) and x.requires_grad for x in args)
    if differentiable and torch.is_grad_enabled():
        raise CaptureError(
            f"{what} would be lost, as a captured graph has the gradients of torch's operators "
            "only. Write it with torch's operators, or make it one by torch.library.custom_op and "
            "register_autograd; remove backward hooks; checkpoint with use_reentrant=False"
        )


@contextmanager
def refuse_vmap() -> Iterator[None]:
    """Within it, torch.vmap is refused, in this thread.

    It changes how the operators after it compute, as they must not be cut apart.
    """
    why = (
        "forward uses torch.vmap, which a captured graph cannot be cut inside: write the batch "
        "dimension out"
    )
    with _refused(apis, "vmap_impl", why):
        yield


@contextmanager
def refuse_foreign_rng() -> Iterator[None]:
    """Within it, random numbers that are not torch's own are refused, in this thread.

    Raises:
        CaptureError: where Python's or numpy's global generator is drawn from; at the end, where it
            was by a function that had been imported by its name.
    """
    with ExitStack() as stack:
        stack.enter_context(preserve_generators(with_torch=False))
        for module, owner in ((random, random._inst), (numpy.random, numpy.random.mtrand._rand)):
            for name, value in vars(module).items():
                if getattr(value, "__self__", None) is owner and "state" not in name:
                    stack.enter_context(_refused(module, name, _drawn(module.__name__)))
        before = comparable_states()
        yield
        after = comparable_states()
    for name in ("random", "numpy.random"):
        if before[name] != after[name]:
            raise CaptureError(_drawn(name))


@contextmanager
def _refused(module: ModuleType, name: str, why: str) -> Iterator[None]:
    """Within it, a function is refused, in this thread."""
    here, function = threading.get_ident(), getattr(module, name)

    def refused(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == here:
            raise CaptureError(why)
        return function(*args, **kwargs)

    setattr(module, name, refused)
    try:
        yield
    finally:
        setattr(module, name, function)


def _drawn(name: str) -> str:
    return (
        f"forward draws from {name}, so every step would repeat one draw (a skipped layer, a "
        "mask). Draw with torch, or turn that off while training"
    )


def numbers(model: nn.Module) -> dict[str, float]:
    """The plain numbers that the model's modules hold, by name: a counter among them, or a size."""
    return {
        f"{path}.{key}" if path else key: value
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if type(value) in (bool, int, float) and key != "training"
    }


def set_numbers(model: nn.Module, values: Mapping[str, float]) -> None:
    """Give the model's modules these numbers."""
    for name, value in values.items():
        path, _, key = name.rpartition(".")
        setattr(model.get_submodule(path), key, value)


@contextmanager
def numbers_kept(model: nn.Module) -> Iterator[None]:
    """Leave the numbers of the model's modules as they are before."""
    before = numbers(model)
    try:
        yield
    finally:
        for name in numbers(model).keys() - before.keys():
            path, _, key = name.rpartition(".")
            delattr(model.get_submodule(path), key)
        set_numbers(model, before)


def check_numbers(first: Mapping[str, float], second: Mapping[str, float]) -> None:
    """Refuse a number that forward has changed twice, as a counter's is.

    Raises:
        CaptureError: names one, and what to do.
    """
    for name in first.keys() & second.keys():
        raise CaptureError(
            f"forward changes the number {name!r} ({first[name]}, then {second[name]}), which a "
            "captured graph cannot: keep it in a buffer, and write to that in place"
        )


def check_buffers(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Refuse buffers that forward has replaced.

    Raises:
        CaptureError: names one, and what to do.
    """
    for name in before.keys() & after.keys():
        if before[name] is not after[name]:
            raise CaptureError(
                f"forward assigns buffer {name!r} anew, which a captured graph cannot: write to "
                f"it in place, as by `self.{name.rpartition('.')[2]}.copy_(...)`"
            )
