"""Lines of a model's code where a number or a shape depends on values.

Such a line may stand in the model's own forward, so that no call around it can become a leaf. Then
its operator keeps the result that it had when the model was captured, and every later call is
checked against that result:

    if mask.any():          a node that checks: still true
    y = x[mask]             a node that checks: still 7 rows
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from skyfx.runtime import pytree
from skyfx.solver.errors import CaptureError
from skyfx.tracing.torch_internals import UNKNOWN_SHAPE_ERROR, UNKNOWN_VALUE_ERRORS

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_LIBRARIES = (Path(torch.__file__).parent, Path(__file__).parents[1])


@cache
def is_library_file(file: str) -> bool:
    """Whether a source file belongs to torch or to skyfx, which a model's author cannot change."""
    return any(Path(file).is_relative_to(folder) for folder in _LIBRARIES)


@dataclass(frozen=True, slots=True)
class OpSite:
    """A call of one of torch's functions in a line of the model's code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function} at {Path(self.file).name}:{self.line}"

    @classmethod
    def calling(cls, function: Any) -> "OpSite":
        """The innermost line that belongs neither to torch nor to skyfx."""
        frame = sys._getframe(1)
        while frame.f_back and is_library_file(frame.f_code.co_filename):
            frame = frame.f_back
        return cls(frame.f_code.co_filename, frame.f_lineno, _name(function))


class DependsOnValuesError(CaptureError):
    """A number or a shape depends on values, at this line."""

    def __init__(self, site: OpSite, *, is_shape: bool = False) -> None:
        """Tell of this site, and whether it is a shape."""
        super().__init__(
            f"the result of {site.function} depends on the values of its arguments, but numbers "
            "and shapes of a captured graph are fixed. Put the lines that need it into a submodule "
            "that returns tensors of fixed shapes, which then stays whole"
        )
        self.site = site
        self.is_shape = is_shape


class NoDataDependence(TorchFunctionMode):
    """Within it, no function of torch may return a number or shape that depends on values.

    torch.export goes on with a symbol for it, which has no size to plan with.

    Raises:
        DependsOnValuesError: a function has returned one.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            returned = func(*args, **(kwargs or {}))
        except (*UNKNOWN_VALUE_ERRORS, RuntimeError) as error:
            if not isinstance(error, UNKNOWN_VALUE_ERRORS) and func is not Tensor.tolist:
                raise
            is_shape = isinstance(error, UNKNOWN_SHAPE_ERROR)
            raise DependsOnValuesError(OpSite.calling(func), is_shape=is_shape) from error
        for leaf in pytree.tree_leaves(returned):
            sizes = leaf.shape if isinstance(leaf, Tensor) else [leaf]
            if any(isinstance(size, _SYMBOLIC) for size in sizes):
                is_shape = isinstance(leaf, Tensor)
                raise DependsOnValuesError(OpSite.calling(func), is_shape=is_shape)
        return returned


class OpSiteOverride(TorchFunctionMode):
    """Within it, other functions are called at these sites, with the own function first."""

    def __init__(self, instead: Mapping[OpSite, Callable[..., Any]]) -> None:
        super().__init__()
        self._instead = instead
        self._functions = {site.function for site in instead}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = _name(func) in self._functions
        instead = self._instead.get(OpSite.calling(func)) if asks else None
        own = partial(instead, func) if instead else func
        return own(*args, **(kwargs or {}))


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", function))
