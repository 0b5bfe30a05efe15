"""What a leaf is called with: tensors, constants, and modules that the model holds.

A module is passed by its path, since each leaf has a copy of the model of its own. Lists and dicts
are made again for each call, so a leaf must not change them.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from skyfx.runtime import pytree
from skyfx.runtime.pytree import flatten, unflatten
from skyfx.solver.errors import CaptureError


@dataclass(frozen=True, slots=True)
class Held:
    """A submodule of the model."""

    path: str


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
