"""The calls in a model's code that can become leaves: of methods of its modules, and of functions.

Each is found in the traceback of an error. Its function can be replaced for a while, under the name
by which it is called:

    submodule(x)              forward of a submodule          submodule.forward = ...
    self.get_rope_index(x)    another method of any module    module.get_rope_index = ...
    lengths_of(mask)          a function                      its name in the caller's file
"""

import copy
import inspect
import itertools
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch import ScriptObject, Tensor, nn

from skyfx.runtime.pytree import tree_leaves
from skyfx.tracing.tensor_binding import bare, named_tensors
from skyfx.tracing.torch_internals import DECISIONS, replaced

_CALLS = {"_call_impl", "_wrapped_call_impl", "__call__"}
"""Methods by which torch calls a module's forward."""


@dataclass(frozen=True, slots=True)
class CallSite:
    """A method of a module, or a function under its name in a Python file.

    Attributes:
        owner: the path of the module in the model; for a function the name of the Python module.
        name: the name of the method or function.
        is_function: whether it is a function.
        kind: the same for similar sites: the class and the method, or the function itself.
    """

    owner: str
    name: str
    is_function: bool
    kind: tuple[Any, ...]

    def __str__(self) -> str:
        return self.owner if self.name == "forward" else f"{self.owner}.{self.name}".lstrip(".")

    def module(self, model: nn.Module) -> nn.Module | None:
        """The module whose method it is; None for a function."""
        return None if self.is_function else model.get_submodule(self.owner)

    def replaced(self, model: nn.Module, by: Callable[..., Any]) -> AbstractContextManager[None]:
        """Within it, `by` is called instead, with the own function as its first argument."""
        module = self.module(model)
        owner = sys.modules[self.owner] if module is None else module
        return replaced(owner, self.name, Replacement(by, getattr(owner, self.name)))


def decides(site: object) -> bool:
    """Whether it is a function of torch that returns a decision, which is fixed."""
    return isinstance(site, CallSite) and (site.owner, site.name) in DECISIONS


_REPLACED = object()
"""Stands for a replacement in a copy."""


class Replacement(partial[Any]):
    """Called in place of a method or function. Copies of a module do not have it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> object:
        return _REPLACED


def copy_of(module: nn.Module) -> nn.Module:
    """A copy in which nothing is replaced, and whose parameters and buffers have no values.

    Its other tensors are the module's own: somebody may write to them between two steps. So are
    the weights that a quantized module has packed.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        held = tree_leaves(list(vars(part).values()))
        memo |= {id(x): x if x.is_leaf else x.detach() for x in held if isinstance(x, Tensor)}
        memo |= {id(x): x for x in held if isinstance(x, ScriptObject)}
    memo |= {id(x): bare(x) for x in named_tensors(module).values()}
    copied = copy.deepcopy(module, memo)
    for part in copied.modules():
        for name in [n for n, value in vars(part).items() if value is _REPLACED]:
            del vars(part)[name]
    return copied


def call_sites_in(error: BaseException, model: nn.Module) -> list[CallSite]:
    """The sites whose code was running when an error was raised, innermost first.

    The model's own forward is not among them.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    # While torch.export traces a module that has two names, a stand-in with its `vars` runs it.
    modules = {id(vars(module)): (name, module) for name, module in model.named_modules()}
    found = [
        _method_of(frame, modules) or _function_of(frame, caller)
        for caller, frame in itertools.pairwise(frames)
    ]
    sites = [site for site in reversed(found) if site and (site.owner or site.name != "forward")]
    if not sites and error.__cause__ is not None:
        return call_sites_in(error.__cause__, model)
    return list(dict.fromkeys(sites))


def similar_sites(site: CallSite, model: nn.Module) -> list[CallSite]:
    """The same method of all modules of its class.

    If that is one of torch's, not all may need it, unless it is quantized.
    """
    module = site.module(model)
    kind = type(module).__module__
    if module is None or (kind.startswith("torch.") and not kind.startswith("torch.ao.")):
        return [site]
    return [
        CallSite(path, site.name, False, site.kind)
        for path, other in model.named_modules()
        if type(other) is type(module) and (path or site.name != "forward")
    ]


def _method_of(frame: FrameType, modules: dict[int, tuple[str, nn.Module]]) -> CallSite | None:
    """The method of a module of the model that the frame runs."""
    code = frame.f_code
    this = frame.f_locals.get(next(iter(code.co_varnames[: code.co_argcount]), ""))
    if not isinstance(this, nn.Module) or id(vars(this)) not in modules:
        return None
    path, module = modules[id(vars(this))]
    name = "forward" if code.co_name in _CALLS else _name_of(code, type(module))
    if not isinstance(inspect.getattr_static(type(module), name, None), FunctionType):
        return None
    return CallSite(path, name, False, (type(module), name))


def _name_of(code: CodeType, kind: type) -> str:
    """The name of a method in its class, as that of a lambda; "" for a function beside it."""
    if "self" in code.co_varnames and hasattr(kind, code.co_name):
        return code.co_name
    methods = ((name, x) for base in kind.__mro__ for name, x in vars(base).items())
    return next((n for n, x in methods if getattr(x, "__code__", None) is code), "")


def _function_of(frame: FrameType, caller: FrameType) -> CallSite | None:
    """The function that the frame runs, if its caller's file has it under its name."""
    name, file = frame.f_code.co_name, str(caller.f_globals.get("__name__"))
    found = caller.f_globals.get(name)
    is_library = file.partition(".")[0] in ("torch", "skyfx") and (file, name) not in DECISIONS
    if is_library or file not in sys.modules or not isinstance(found, FunctionType):
        return None
    if getattr(inspect.unwrap(found), "__code__", None) is not frame.f_code:
        return None
    return CallSite(file, name, True, (file, name))
