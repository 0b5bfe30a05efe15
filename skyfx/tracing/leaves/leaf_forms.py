"""The forms of what a call returns: all of it but what its tensors hold.

Which calls are tried with other values, to see whether these change the form.
"""

from typing import Any

from torch import Tensor

from skyfx.runtime.pytree import flatten
from skyfx.tracing.leaves.call_sites import CallSite, decides
from skyfx.tracing.leaves.forward_lines import Lines
from skyfx.tracing.leaves.leaf_sites import Function, LeafSite, Reason


def forms_differ(one: Any, other: Any) -> bool:
    """Whether more differs than what tensors hold."""
    return _form_of(one) != _form_of(other)


def shapes_differ(one: Any, other: Any) -> bool:
    """Whether a tensor has another shape; something else instead, as None for a mask, may be."""
    shapes = ([getattr(x, "shape", None) for x in flatten(value)[0]] for value in (one, other))
    return any(x and y and x != y for x, y in zip(*shapes, strict=False))


def num_changes(site: LeafSite, own: Function, because: Reason) -> int | None:
    """With how many other values a call is tried; None for all that there are.

    Most with one: many take few values only.
    """
    if is_tried_fully(site, own, because):
        return None
    return int(isinstance(site, CallSite) and not (decides(site) or because.is_trusted))


def is_tried_fully(site: LeafSite, own: Function, because: Reason) -> bool:
    """Whether no other value may give it another form, be it a number or None."""
    if not isinstance(site, CallSite) or decides(site):
        return isinstance(site, Lines)
    of_torch = str(getattr(own, "__module__", "")).startswith("torch.")
    is_shape = because.is_shape and not because.is_trusted
    return is_shape or (site.is_function and of_torch)


def _form_of(value: Any) -> tuple[Any, ...]:
    leaves, spec = flatten(value)
    return str(spec), *((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
