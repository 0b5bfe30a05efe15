"""The private parts of torch that skyfx uses, each under its meaning here.

A new release may change any of them. `tests/skyfx/tracing/test_torch_internals.py` tests each.
"""

import keyword
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from traceback import FrameSummary, StackSummary
from typing import Any

import torch
from torch import Tensor, compiler, fx, nn
from torch._functorch import apis as functorch
from torch._functorch import eager_transforms
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import grad_mode, profiler_legacy
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import handle_torch_function
from torch.utils import _traceback, checkpoint
from torch.utils.checkpoint import CheckpointFunction

from skyfx.runtime.pytree import inner_tensors

UNKNOWN_SHAPE_ERROR = fake_tensor.DynamicOutputShapeException
_UNKNOWN_NUMBER_ERROR = fake_tensor.DataDependentOutputException
UNKNOWN_VALUE_ERRORS = (GuardOnDataDependentSymNode, _UNKNOWN_NUMBER_ERROR, UNKNOWN_SHAPE_ERROR)
"""The errors of torch.export where it would have to know a value, and that of a shape."""

DECISIONS = {("torch.nn.modules.transformer", "_detect_is_causal_mask")}
"""Functions of torch, by their Python modules, that branch on values and return a decision."""

NO_SAVED_TENSORS_HOOKS = "don't yet support saved tensor hooks"
"""Part of the error where `torch.func` runs within `torch.autograd.graph.saved_tensors_hooks`."""

_writing_code = threading.RLock()  # held while torch.fx writes code for any attribute name


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within it, a class, a Python module or an object has this attribute; afterwards as before."""
    is_own, own = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, own)
        else:
            delattr(owner, name)


def checked_calls(owner: Any, name: str, check: Callable[..., Any]) -> AbstractContextManager[None]:
    """Within it, `check` gets the arguments of each call of a function in this thread first."""
    here, function = threading.get_ident(), getattr(owner, name)

    def checked(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == here:
            check(*args)
        return function(*args, **kwargs)

    return replaced(owner, name, checked)


@contextmanager
def replaced_functions(instead: Callable[..., Any]) -> Iterator[None]:
    """Within it, autograd functions of this thread are called by `instead`.

    It gets the class, its own `apply` and the arguments. A name that was bound to `Round.apply`
    before leads here, too.
    """
    here, base = threading.get_ident(), torch.autograd.function._SingleLevelFunction
    outer = vars(base).get("apply")

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        own = super(base, cls).apply if outer is None else outer.__get__(None, cls)
        # What torch uses inside, as for `torch.library.custom_op`, is part of an operator.
        if threading.get_ident() != here or cls.__module__.startswith("torch._"):
            return own(*args, **kwargs)
        return instead(cls, own, *args, **kwargs)

    with replaced(base, "apply", classmethod(apply)):
        yield


def is_reentrant_checkpoint(function: type) -> bool:
    """Whether an autograd function runs a checkpoint with `use_reentrant=True`.

    Its arguments are the function to run, whether to keep random states, and those to run it with.
    """
    return function is CheckpointFunction


def around_checkpoints(within: Callable[[], Any]) -> AbstractContextManager[None]:
    """Within it, checkpoints with `use_reentrant=False` run within this context of their own."""
    name = "_checkpoint_without_reentrant_generator"
    own = getattr(checkpoint, name)

    def inside(*args: Any, **kwargs: Any) -> Any:
        with within():
            yield from own(*args, **kwargs)

    return replaced(checkpoint, name, inside)


@contextmanager
def inference_modes_as_grad_modes() -> Iterator[None]:
    """Within it, `torch.inference_mode` switches gradients off (or on), and does no more.

    torch.export notes `torch.no_grad`, and overlooks `torch.inference_mode`.
    """
    here, modes = threading.get_ident(), grad_mode.inference_mode
    own_enter, own_exit = modes.__enter__, modes.__exit__

    def enter(mode: Any) -> Any:
        if threading.get_ident() != here:
            return own_enter(mode)
        mode.skyfx_before = torch.is_grad_enabled()
        return torch.set_grad_enabled(not mode.mode)

    def leave(mode: Any, *error: Any) -> None:
        if threading.get_ident() != here:
            return own_exit(mode, *error)
        torch.set_grad_enabled(mode.skyfx_before)
        return None

    with replaced(modes, "__enter__", enter), replaced(modes, "__exit__", leave):
        yield


@contextmanager
def checked_derivatives(check: Callable[[bool], None]) -> Iterator[None]:
    """Within it, `check` is called before each derivative that this thread computes.

    It is told whether the derivative is added to gradients, as by `backward`.
    """
    here, run_backward = threading.get_ident(), torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def checked(*args: Any, accumulate_grad: bool, **kwargs: Any) -> Any:
        if threading.get_ident() == here:
            check(accumulate_grad)
        return run_backward(*args, accumulate_grad=accumulate_grad, **kwargs)

    entered = partial(checked_calls, eager_transforms, check=lambda: check(False))
    engine = replaced(torch.autograd, "_engine_run_backward", checked)
    with engine, entered("grad_increment_nesting"), entered("jvp_increment_nesting"):
        yield


def checked_hooks(check: Callable[..., None]) -> AbstractContextManager[None]:
    """Within it, `check` gets each tensor of this thread that gets a hook for its gradient."""
    return checked_calls(Tensor, "register_hook", check)


def checked_vmap(check: Callable[..., None]) -> AbstractContextManager[None]:
    """Within it, `check` is called before each torch.vmap of this thread."""
    return checked_calls(functorch, "vmap_impl", check)


def scripts_as_at_first() -> AbstractContextManager[None]:
    """Within it, a scripted function runs as in its first call: torch.jit changes it after that."""
    here, own = threading.get_ident(), torch.jit.ScriptFunction.__call__

    def run(script: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != here:
            return own(script, *args, **kwargs)
        further = script.schema.arguments[len(args) :]
        given = (*args, *(kwargs.get(x.name, x.default_value) for x in further))
        return own(torch._C._create_function_from_graph("first", script.graph.copy()), *given)

    return replaced(torch.jit.ScriptFunction, "__call__", run)


@contextmanager
def export_flags(*, exported: bool) -> Iterator[None]:
    """Within it, torch says that it is exporting, or that it is not.

    Many models ask, and go another way then: they keep a mask that hides nothing, or turn a solver
    into a loop. Where torch says no, they compute as they do eagerly, which is better captured.
    """
    compiling = replaced(compiler, "_is_compiling_flag", exported)
    with compiling, replaced(compiler, "_is_exporting_flag", exported):
        yield


def interceptable_lists() -> AbstractContextManager[None]:
    """Within it, a `TorchFunctionMode` sees `Tensor.tolist` of fake tensors, as of others."""

    def tolist(tensor: Tensor) -> Any:
        return handle_torch_function(Tensor.tolist, (tensor,), tensor)

    return replaced(FakeTensor, "tolist", tolist)


@contextmanager
def any_attribute_name() -> Iterator[None]:
    """Within it, torch.fx writes code for attributes of any name: `class`, `None`, `a"b`.

    Keys of `nn.ModuleDict` may be such names. torch.fx would write `self.class`, and
    `torch.ops.aten.random_.from`, an operator whose name is a keyword as well.
    """
    is_from_torch = fx.graph._is_from_torch

    def format_target(base: str, target: str) -> str:
        for name in target.split("."):
            base = f"getattr({base}, {name!r})"
        return base

    def has_path(code: Any) -> bool:
        return is_from_torch(code) and not keyword.iskeyword(getattr(code, "_overloadname", ""))

    attributes = replaced(fx.graph, "_format_target", format_target)
    with _writing_code, attributes, replaced(fx.graph, "_is_from_torch", has_path):
        yield


def lines_on_demand() -> AbstractContextManager[None]:
    """Within it, torch.fx looks for the lines of a node's stack only where somebody reads them."""

    def frames(found: list[dict[str, Any]], skip: int) -> StackSummary:
        kept = [(x["filename"], x["line"], x["name"]) for x in reversed(found[skip:])]
        return StackSummary([FrameSummary(*x, lookup_line=False) for x in kept])

    return replaced(_traceback, "_extract_symbolized_tb", frames)


def forward_hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """The tables of a module's hooks before its forward, and after it."""
    return module._forward_pre_hooks, module._forward_hooks


def no_parametrization_cache() -> AbstractContextManager[None]:
    """Within it, `parametrize.cached()` around has no effect: it has values of other tensors."""
    return replaced(nn.utils.parametrize, "_cache_enabled", 0)


def own_tensors(module: nn.Module) -> Iterator[dict[str, Any]]:
    """The dicts in which a module and its submodules hold parameters and buffers."""
    for part in module.modules():
        yield from (part._parameters, part._buffers)


def storage_id(tensor: Tensor) -> int:
    """The same number for tensors that share memory, fake and meta tensors among them."""
    if inner := inner_tensors(tensor):
        return storage_id(next(iter(inner.values())))
    storage = tensor.untyped_storage()
    return (0 if isinstance(tensor, FakeTensor) else storage.data_ptr()) or storage._cdata


@contextmanager
def script_objects_hidden(model: nn.Module) -> Iterator[None]:
    """Within it, modules have no objects of `torch.classes`: torch.export looks into them first."""
    with ExitStack() as stack:
        for module in model.modules():
            for name in [x for x, y in vars(module).items() if isinstance(y, torch.ScriptObject)]:
                stack.enter_context(replaced(module, name, None))
        yield


def num_writes(tensor: Tensor) -> int:
    """How many times the tensor has been written to in place; 0 where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def schema_of(node: fx.Node) -> Any:
    """The schema of the operator that a node calls; None for other functions."""
    return getattr(node.target, "_schema", None)


def written_arguments(node: fx.Node) -> Iterator[Any]:
    """The arguments that the operator of a node writes to, as its schema says."""
    for i, argument in enumerate(getattr(schema_of(node), "arguments", ())):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)


def may_return_input(node: fx.Node) -> bool:
    """Whether its operator is made of others, so that its schema does not tell of aliases."""
    if schema_of(node) is None or any(a.alias_info for a in schema_of(node).arguments):
        return False
    has_kernel: Any = torch._C._dispatch_has_kernel_for_dispatch_key
    return bool(has_kernel(node.target.name(), "CompositeImplicitAutograd"))  # type: ignore[union-attr]


def allocations_of(call: Callable[[], Any]) -> tuple[Any, list[int]]:
    """The result of a call, and the bytes of each allocation (negative: release) on the CPU."""
    # Of torch's profilers the one that tells of each allocation in its turn, and prints nothing.
    engine: Any = torch.autograd
    profiles: Any = profiler_legacy.profile
    engine._enable_profiler_legacy(profiles(profile_memory=True).config())
    try:
        returned = call()
    finally:
        records = engine._disable_profiler_legacy()
    found = [x for of_thread in records for x in of_thread if x.kind() == "memory_alloc"]
    return returned, [x.cpu_memory_usage() for x in found]
