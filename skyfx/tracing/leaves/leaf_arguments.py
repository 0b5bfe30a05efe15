"""What a leaf is called with: tensors, constants, and modules that the model holds.

A module is passed by its path, since each leaf has a copy of the model of its own. Lists and dicts
are made again for each call, so a leaf must not change them.
"""

from dataclasses import dataclass, is_dataclass
from types import EllipsisType, FunctionType
from typing import Any

from torch import Tensor, nn

from skyfx.runtime import pytree
from skyfx.runtime.batches.microbatch import CONSTANTS
from skyfx.runtime.pytree import flatten, unflatten
from skyfx.solver.errors import CaptureError


@dataclass(frozen=True, slots=True)
class Held:
    """A submodule of the model."""

    path: str


_ARGUMENTS = (*CONSTANTS, Held, slice, EllipsisType)
"""Allowed arguments beside tensors; configs and functions as well, see `is_argument`."""


def flatten_held(model: nn.Module | None, value: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """The leaves of a value with the model's own submodules by their paths, and their nesting."""
    leaves, spec = flatten(value)
    if model is not None and any(isinstance(x, nn.Module) for x in leaves):
        paths = {id(vars(module)): path for path, module in model.named_modules() if path}
        known = [paths.get(id(vars(x))) if isinstance(x, nn.Module) else None for x in leaves]
        leaves = [x if path is None else Held(path) for x, path in zip(leaves, known, strict=True)]
    return leaves, spec


def unflatten_held(model: nn.Module | None, leaves: Any, spec: pytree.TreeSpec) -> Any:
    """The value of this nesting with these leaves."""
    if model is not None:
        leaves = [model.get_submodule(x.path) if isinstance(x, Held) else x for x in leaves]
    return unflatten(leaves, spec)


def check_unchanged(value: Any, leaves: Any, spec: pytree.TreeSpec) -> None:
    """Refuse that a call has changed a list or dict that it was given.

    Raises:
        CaptureError: it holds something else than before.
    """
    found, found_spec = flatten(value)
    pairs = zip(found, leaves, strict=False)
    if found_spec != spec or any(x is not y for x, y in pairs if not isinstance(y, Held)):
        raise CaptureError("it changes a list or dict that it is given")


def is_argument(leaf: Any) -> bool:
    """Whether it can cross the edge of a node."""
    ends = (leaf.start, leaf.stop, leaf.step) if isinstance(leaf, slice) else ()
    if any(isinstance(x, Tensor) for x in ends):
        return False
    is_constant = is_dataclass(leaf) or _is_constant_function(leaf)
    return is_constant or isinstance(leaf, (Tensor, *_ARGUMENTS))


def _is_constant_function(value: Any) -> bool:
    """Whether it is a function that computes from its arguments alone."""
    if not isinstance(value, FunctionType):
        return False
    held = [cell.cell_contents for cell in value.__closure__ or ()]
    return all(isinstance(x, CONSTANTS) or _is_constant_function(x) for x in flatten(held)[0])
