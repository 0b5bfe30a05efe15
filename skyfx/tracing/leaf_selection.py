"""The selection of a model's calls that become leaves, because torch.export cannot follow them.

torch.export follows no branch on a value, no shape that depends on one, and no custom gradient. The
innermost call whose code needs one of these becomes a leaf, and the model is traced again. If its
arguments or its result cannot cross the edge of a node, the next call around it is tried. At last,
in the model's own forward, single operators are fixed to their results (see `data_dependence`).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, is_dataclass
from functools import partial
from types import EllipsisType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skyfx.runtime.execution.assigned_attributes import AssignedAttributes
from skyfx.runtime.execution.microbatch import CONSTANTS, OutputSpec
from skyfx.runtime.pytree import flatten
from skyfx.runtime.rng.generator_state import comparable_states, preserve_generators
from skyfx.solver.errors import CaptureError
from skyfx.tracing.attribute_watch import AttributeWatch
from skyfx.tracing.autograd_effects import CustomGradientError
from skyfx.tracing.call_sites import CallSite, call_sites_in, copy_of, similar_sites
from skyfx.tracing.data_dependence import DependsOnValuesError, OpSite, OpSiteOverride
from skyfx.tracing.leaf_calls import BoundCode, RecordedCall, buffers_kept, stand_in
from skyfx.tracing.tensor_binding import named_tensors
from skyfx.tracing.torch_internals import (
    checked_derivatives,
    export_flags,
    num_writes,
    replaced_functions,
)

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class FunctionSite:
    """All calls of an autograd function."""

    function: type

    def __str__(self) -> str:
        return self.function.__name__


LeafSite = CallSite | FunctionSite | OpSite

logger = logging.getLogger(__name__)

_ARGUMENTS = (*CONSTANTS, slice, EllipsisType)
"""Allowed arguments beside tensors; configs and functions as well, see `_check_constants`."""


class CalledOtherwiseError(CaptureError):
    """A leaf gets other arguments when the model is traced than when it ran.

    Many models ask whether a tensor has values, and leave out a mask that hides nothing.
    """


class LeafSelection:
    """The sites of a model whose calls become leaves, and the calls that were recorded there."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._call_sites: list[CallSite] = []
        self._function_sites: dict[type, FunctionSite | None] = {}
        self._op_sites: list[OpSite] = []
        self._refused_kinds: set[tuple[Any, ...]] = set()
        self._last_op_site: OpSite | None = None
        self._recorded: dict[LeafSite, list[RecordedCall]] = {}
        self._untraced: dict[LeafSite, Iterator[RecordedCall]] = {}
        self._is_recording = False

    @property
    def calls(self) -> list[RecordedCall]:
        """All recorded calls, grouped by their sites."""
        return [call for calls in self._recorded.values() for call in calls]

    def add(self, error: BaseException) -> bool:
        """Select the innermost call whose code has failed; False where none is left."""
        if isinstance(error, DependsOnValuesError):
            self._last_op_site = error.site
        if isinstance(error, CustomGradientError) and self._add_function(error.function):
            return True
        for call in call_sites_in(error, self._model):
            if call not in self._call_sites and call.kind not in self._refused_kinds:
                self._call_sites += similar_sites(call, self._model)
                return True
        if (site := self._last_op_site) is None or site in self._op_sites:
            return False
        logger.warning("the result of %s is fixed: later batches have to give the same", site)
        self._op_sites.append(site)
        return True

    def _add_function(self, function: type) -> bool:
        """Select an autograd function; torch's own ones are run for what is around them."""
        if function in self._function_sites or function.__module__.startswith("torch."):
            return False
        self._function_sites[function] = FunctionSite(function)
        return True

    def record(self, call: Callable[[], Any]) -> Any:
        """Call the model, and record each call at a selected site.

        Raises:
            CaptureError: one of the calls cannot become a leaf; its site is selected no longer.
        """
        functions = filter(None, self._function_sites.values())
        sites: list[LeafSite] = [*self._call_sites, *functions, *self._op_sites]
        self._recorded = {site: [] for site in sites}
        with self._replaced(self._record_call):
            return call()

    @contextmanager
    def stand_ins(self) -> Iterator[None]:
        """Within it, each recorded call is one operator, for torch.export to trace."""
        self._untraced = {site: iter(calls) for site, calls in self._recorded.items()}
        with self._replaced(self._stand_in):
            yield

    @contextmanager
    def _replaced(self, instead: Function) -> Iterator[None]:
        """Within it, `instead(site, own function, ...)` is called at each selected site."""
        with ExitStack() as stack:
            for site in self._call_sites:
                stack.enter_context(site.replaced(self._model, partial(instead, site)))
            ours = {site: partial(instead, site) for site in self._op_sites}
            stack.enter_context(OpSiteOverride(ours))
            stack.enter_context(replaced_functions(partial(self._apply, instead)))
            yield

    def _apply(
        self, instead: Function, function: type, own: Function, *args: Any, **kwargs: Any
    ) -> Any:
        """Call an autograd function, by `instead` if it is selected."""
        site = self._function_sites.get(function)
        called = own if site is None else partial(instead, site, own)
        return called(*args, **kwargs)

    def _record_call(self, site: LeafSite, own: Function, *args: Any, **kwargs: Any) -> Any:
        if self._is_recording:  # a call inside another leaf
            return own(*args, **kwargs)
        self._is_recording = True
        try:
            returned, call = self._run_recorded(site, own, args, kwargs)
        except Exception as error:
            if isinstance(site, CallSite):
                self._refused_kinds.add(site.kind)
                self._call_sites = [other for other in self._call_sites if other.kind != site.kind]
            if isinstance(site, FunctionSite):
                self._function_sites[site.function] = None
            raise CaptureError(f"{site}: {error}") from error
        finally:
            self._is_recording = False
        self._recorded[site].append(call)
        return returned

    def _run_recorded(
        self, site: LeafSite, own: Function, args: Any, kwargs: Any
    ) -> tuple[Any, RecordedCall]:
        """Run a call; returns its result and its record."""
        leaves, spec = flatten((args, kwargs))
        number = len(self._recorded[site])
        name = f"{site}/{number}" if number else str(site)
        _check_constants(name, "gets", leaves, _ARGUMENTS)
        module = self._module_of(site)
        named = {} if module is None else named_tensors(module)
        given = [x for x in leaves if isinstance(x, Tensor)]
        writes = {id(x): num_writes(x) for x in (*given, *named.values())}
        generators, derivatives = comparable_states(), list[bool]()
        kept = nullcontext() if module is None else buffers_kept(module)
        watch = None if module is None else AttributeWatch(module)
        code = _bound_code(site, own, module)  # with the attributes as they are before the call
        noted = checked_derivatives(lambda *_: derivatives.append(True))
        with _UsedTensors(named) as used, export_flags(exported=False), kept, noted:
            returned = own(*args, **kwargs)
        # A computed number may be another one next time, but the graph has it fixed.
        constants = CONSTANTS if isinstance(site, OpSite) else (str, type(None))
        _check_constants(name, "returns", flatten(returned)[0], constants)
        is_forward = isinstance(site, CallSite) and site.name == "forward"
        state = [n for n in named if n in used.names or is_forward]
        tensors = [*given, *(named[n] for n in state)]
        form, outputs = OutputSpec.of(returned)
        assigned, left = AssignedAttributes.of({} if watch is None else watch.tensor_changes())
        outputs = [*outputs, *left]
        written = {i for i, x in enumerate(tensors) if num_writes(x) != writes[id(x)]}
        call = RecordedCall(
            name=name,
            run=code,
            leaves=tuple(None if isinstance(x, Tensor) else x for x in leaves),
            is_tensor=tuple(isinstance(x, Tensor) for x in leaves),
            spec=spec,
            state=tuple(state),
            form=form,
            assigned=assigned,
            outputs=tuple(x.detach().to("meta") for x in outputs),
            writes=frozenset(written | {i for i, x in enumerate(tensors) if _may_write(module, x)}),
            is_random=generators != comparable_states(),
            needs=tuple(x.requires_grad for x in tensors) if derivatives else (),
        )
        if derivatives:
            _check_apart(call, tensors, outputs if not (written or call.is_random) else None)
        return returned, call

    def _module_of(self, site: LeafSite) -> nn.Module | None:
        """The module whose method is called at the site."""
        return site.module(self._model) if isinstance(site, CallSite) else None

    def _stand_in(self, site: LeafSite, _: Function, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = flatten((args, kwargs))
        call = next(self._untraced[site], None)
        if call is None or not call.is_given(leaves, spec):
            raise CalledOtherwiseError(f"{site} gets other arguments in the trace than in the run")
        module = self._module_of(site)
        named = {} if module is None else named_tensors(module, tied=True)
        given = [x for x in leaves if isinstance(x, Tensor)]
        return stand_in(call, [*given, *(named[name] for name in call.state)], module)


class _UsedTensors(TorchFunctionMode):
    """Within it, notes which of these tensors functions of torch get as arguments."""

    def __init__(self, named: dict[str, Tensor]) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._name_of = {id(x): name for name, x in named.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in flatten((args, kwargs))[0]:
            if id(leaf) in self._name_of:
                self.names.add(self._name_of[id(leaf)])
        return func(*args, **(kwargs or {}))


def _check_apart(
    call: RecordedCall, tensors: Sequence[Tensor], expected: Sequence[Tensor] | None
) -> None:
    """Refuse a call that differentiates what was computed outside of it.

    Args:
        call: it computes a derivative.
        tensors: those it was recorded with.
        expected: its outputs then; None if they may differ in another run.
    """
    copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in tensors]
    with preserve_generators():
        found = call(*copies)
    if expected is not None and not all(map(torch.equal, found, expected)):
        raise CaptureError("a derivative leads out of it")


def _bound_code(site: LeafSite, own: Function, module: nn.Module | None) -> BoundCode:
    """The code of a call, to be called again."""
    if module is None or not isinstance(site, CallSite):
        return BoundCode(None, own)
    return BoundCode(copy_of(module), site.name)


def _may_write(module: nn.Module | None, x: Tensor) -> bool:
    """Whether it is a buffer that another branch may write to, as batch norm does in training."""
    return module is not None and module.training and any(x is b for b in module.buffers())


def _check_constants(name: str, verb: str, leaves: list[Any], allowed: tuple[type, ...]) -> None:
    """Refuse values that cannot cross the edge of a node."""
    for leaf in leaves:
        constant = allowed is _ARGUMENTS and (is_dataclass(leaf) or _is_constant_function(leaf))
        ends = (leaf.start, leaf.stop, leaf.step) if isinstance(leaf, slice) else ()
        if any(isinstance(x, Tensor) for x in ends):
            raise CaptureError(f"{name!r} {verb} a slice whose ends depend on values")
        if not isinstance(leaf, (Tensor, *allowed)) and not constant:
            raise CaptureError(f"{name!r} {verb} an object of {type(leaf).__name__}")


def _is_constant_function(value: Any) -> bool:
    """Whether it is a function that computes from its arguments alone."""
    if not isinstance(value, FunctionType):
        return False
    held = [cell.cell_contents for cell in value.__closure__ or ()]
    return all(isinstance(x, CONSTANTS) or _is_constant_function(x) for x in flatten(held)[0])
