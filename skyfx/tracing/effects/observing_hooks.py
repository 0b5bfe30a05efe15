"""Forward hooks of the user that only observe: they collect, count, print, and change nothing.

Two calls of the model show which do: in the first, hooks are called as always. In the second they
are called after forward. If the outputs and all that is left are the same, they may be put off.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dis import get_instructions
from functools import partial
from inspect import CO_VARARGS
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from torch import Tensor, nn

from skyfx.runtime.execution.hook_calls import StepHook
from skyfx.runtime.model_state import ModelState, preserve_run
from skyfx.runtime.pytree import tree_map
from skyfx.runtime.state.contents import content, equal, is_closed
from skyfx.tracing.torch_internals import forward_hooks

HookCall = tuple[nn.Module, Any, Any]
"""The module, the hook, and what it is given besides the module."""


@dataclass(frozen=True, slots=True)
class HookSite:
    """A hook of a module, as torch keeps it: under a key of a table.

    Attributes:
        reads: the positions of what it reads, of what it is given besides the module.
    """

    module: nn.Module
    hook: Any
    table: dict[int, Any]
    key: int
    reads: frozenset[int]


class _InPlaceOf(partial[Any]):
    """Called instead of a hook. In copies of a module the hook is called in steps."""

    def __deepcopy__(self, memo: dict[int, Any]) -> StepHook:
        return StepHook(self.args[0].hook)


class Observers(NamedTuple):
    """Hooks that only observe, and the names of what they change for themselves."""

    sites: Sequence[HookSite] = ()
    changes: frozenset[str] = frozenset()


def observing_hooks(model: nn.Module, run: Callable[[], Sequence[Tensor]]) -> Observers:
    """The hooks that only observe; the model is as before afterwards.

    Args:
        model: whose hooks are meant; without values, those count that can be put off.
        run: calls it on a micro-batch.
    """
    sites = _sites(model)
    if not sites:
        return Observers()
    is_empty = any(x.is_meta for x in model.parameters())
    returning: list[HookSite] = []

    def call(site: HookSite, *values: Any) -> Any:
        try:
            returned = site.hook(*values)
        except Exception:
            if is_empty:  # the hook needs values
                return None
            raise
        if returned is not None:
            returning.append(site)
        return returned

    try:
        with preserve_run(model):
            with _replaced(sites, call):
                as_always = [content(x) for x in run()]
            state = ModelState.of(model)
        sites = [site for site in sites if all(site is not each for each in returning)]
        with preserve_run(model):
            with put_off(sites) as calls:
                later = [content(x) for x in run()]
            before = ModelState.of(model)
            for module, hook, values in () if is_empty else calls:
                hook(module, *values)
            after = ModelState.of(model)
    except Exception:
        return Observers()  # they are traced, and torch.export says why that fails
    if not (equal(as_always, later) and (is_empty or state.equals(after))):
        return Observers()
    return Observers(sites, before.changes(after))


@contextmanager
def put_off(sites: Sequence[HookSite]) -> Iterator[list[HookCall]]:
    """Within it, the hooks are not called; yields the calls, with copies of the tensors."""
    calls: list[HookCall] = []

    def note(site: HookSite, module: nn.Module, *values: Any) -> None:
        read = (x if i in site.reads else None for i, x in enumerate(values))
        calls.append((module, site.hook, tree_map(_copied, tuple(read))))

    with _replaced(sites, note):
        yield calls


@contextmanager
def called_at_once(
    model: nn.Module, hooks: Sequence[tuple[nn.Module, Any]]
) -> Iterator[list[tuple[nn.Module, Any, Any]]]:
    """Within it, those of these hooks that plain torch calls are noted, with what they return."""
    calls: list[tuple[nn.Module, Any, Any]] = []
    known = {(id(module), id(hook)) for module, hook in hooks}

    def call(site: HookSite, *values: Any) -> Any:
        returned = site.hook(*values)
        calls.append((site.module, site.hook, returned))
        return returned

    sites = [x for x in _sites(model) if (id(x.module), id(x.hook)) in known]
    with _replaced(sites, call):
        yield calls


@contextmanager
def _replaced(sites: Sequence[HookSite], by: Callable[..., Any]) -> Iterator[None]:
    for site in sites:
        site.table[site.key] = _InPlaceOf(by, site)
    try:
        yield
    finally:
        for site in sites:
            site.table[site.key] = site.hook


def _copied(value: Any) -> Any:
    # An operator may write to it later, which the hook would not see.
    return value.clone() if isinstance(value, Tensor) else value


def _sites(model: nn.Module) -> list[HookSite]:
    return [
        HookSite(module, hook, table, key, _positions_read(hook))
        for module in model.modules()
        for table in forward_hooks(module)
        for key, hook in table.items()
        if not _is_installed(hook)
    ]


def _is_installed(hook: Any) -> bool:
    """Whether the hook is code of torch or of a package, such as `weight_norm`."""
    while isinstance(hook, partial):
        hook = hook.func
    return is_closed(hook if hasattr(hook, "__qualname__") else type(hook))


def _positions_read(hook: Any) -> frozenset[int]:
    """The positions of arguments that the code of a hook reads, after the module's."""
    function = getattr(hook, "__func__", hook)
    if not isinstance(function, FunctionType) or function.__code__.co_flags & CO_VARARGS:
        return frozenset(range(3))
    code = function.__code__
    read = {*code.co_cellvars}.union(*(_names(x.argval) for x in get_instructions(code)))
    own = code.co_varnames[: code.co_argcount]
    after = own[2:] if isinstance(hook, MethodType) else own[1:]
    return frozenset(i for i, name in enumerate(after) if name in read)


def _names(argument: Any) -> tuple[Any, ...]:
    return argument if isinstance(argument, tuple) else (argument,)
