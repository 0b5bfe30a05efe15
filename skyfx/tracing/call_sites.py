"""The places in a model's code that can stay whole: methods of its modules, and functions.

Each is found in the traceback of what went wrong, and is called by a name that can be given another
meaning for a while:

    submodule(x)              forward of a submodule          submodule.forward = ...
    self.get_rope_index(x)    another method of any module    module.get_rope_index = ...
    lengths_of(mask)          a function                      its name in the caller's file
"""

import inspect
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, FunctionType
from typing import Any

from torch import nn

__all__: list[str] = ["CallSite", "like", "spots_in"]

_CALLS = {"_call_impl", "_wrapped_call_impl", "__call__"}
"""Methods by which torch calls a module's forward."""


@dataclass(frozen=True, slots=True)
class CallSite:
    """A method of a module, or a function as a file of Python calls it.

    Attributes:
        owner: the path of the module in the model; for a function the name of the file's module.
        name: of the method or function.
        is_function: which of both it is.
        kind: what its like have in common: the class and the method, or itself.
    """

    owner: str
    name: str
    is_function: bool
    kind: tuple[Any, ...]

    def __str__(self) -> str:
        return self.owner if self.name == "forward" else f"{self.owner}.{self.name}".lstrip(".")

    def module(self, model: nn.Module) -> nn.Module | None:
        """The module whose method it is."""
        return None if self.is_function else model.get_submodule(self.owner)

    @contextmanager
    def replaced(self, model: nn.Module, by: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
        """Within it, `by` is called in its place; what it was itself is given."""
        module = self.module(model)
        place = vars(sys.modules[self.owner]) if module is None else module.__dict__
        own = place[self.name] if module is None else getattr(module, self.name)
        before = place.get(self.name)
        place[self.name] = by
        try:
            yield own
        finally:
            if before is None:
                del place[self.name]
            else:
                place[self.name] = before


def spots_in(error: BaseException, model: nn.Module) -> list[CallSite]:
    """The places whose code was running when an error was raised, innermost first.

    Not among them is the model's own forward.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    paths = {id(module): name for name, module in model.named_modules()}
    found = [
        _method(frame, paths) or _function(frame, caller)
        for caller, frame in itertools.pairwise(frames)
    ]
    spots = [spot for spot in reversed(found) if spot and (spot.owner or spot.name != "forward")]
    if not spots and error.__cause__ is not None:
        return spots_in(error.__cause__, model)
    return list(dict.fromkeys(spots))


def like(spot: CallSite, model: nn.Module) -> list[CallSite]:
    """The same method of all modules of its class, unless that class is one of torch's."""
    module = spot.module(model)
    if module is None or type(module).__module__.startswith("torch."):
        return [spot]
    return [
        CallSite(path, spot.name, False, spot.kind)
        for path, other in model.named_modules()
        if type(other) is type(module) and (path or spot.name != "forward")
    ]


def _method(frame: FrameType, paths: dict[int, str]) -> CallSite | None:
    """The method of a module of the model that the frame runs."""
    this = frame.f_locals.get("self")
    name = "forward" if frame.f_code.co_name in _CALLS else frame.f_code.co_name
    if not isinstance(this, nn.Module) or id(this) not in paths:
        return None
    if not isinstance(inspect.getattr_static(type(this), name, None), FunctionType):
        return None
    return CallSite(paths[id(this)], name, False, (type(this), name))


def _function(frame: FrameType, caller: FrameType) -> CallSite | None:
    """The function that the frame runs, if its caller knows it by its name."""
    name, file = frame.f_code.co_name, str(caller.f_globals.get("__name__"))
    found = caller.f_globals.get(name)
    ours = file.partition(".")[0] in ("torch", "skyfx")
    if ours or file not in sys.modules or not isinstance(found, FunctionType):
        return None
    if getattr(inspect.unwrap(found), "__code__", None) is not frame.f_code:
        return None
    return CallSite(file, name, True, (file, name))
