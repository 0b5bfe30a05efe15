"""Any model as a function from tensors to tensors, which is what torch.export takes.

Constants and the nesting of the arguments stay with the adapter. Of what the model returns, and of
what it leaves on attributes, it passes on the tensors.
"""

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn

from skyfx.runtime.batches.microbatch import Batch, OutputSpec
from skyfx.runtime.execution.assigned_attributes import AssignedAttributes, AttributeChange
from skyfx.runtime.execution.hook_calls import HookCalls
from skyfx.runtime.model_state import preserve_run
from skyfx.runtime.pytree import tree_leaves, unflatten
from skyfx.runtime.state.python_numbers import is_stand_in
from skyfx.solver.errors import CaptureError
from skyfx.tracing.data_dependence import NoDataDependence
from skyfx.tracing.effects.attribute_watch import AttributeWatch
from skyfx.tracing.effects.counters import put_stand_ins, reads_refused
from skyfx.tracing.effects.eager_ways import same_kernels
from skyfx.tracing.effects.first_call import (
    Structure,
    check_same,
    modules_and_hooks,
)
from skyfx.tracing.effects.observing_hooks import Observers, put_off
from skyfx.tracing.failures import FinalError
from skyfx.tracing.leaves.bound_code import buffers_kept
from skyfx.tracing.node_names import ADAPTED
from skyfx.tracing.torch_internals import export_flags, interceptable_lists


class KnownEffects(NamedTuple):
    """What is known of a model's effects.

    Attributes:
        left_out: attributes that are no outputs, although forward assigns them.
        observers: hooks that only observe.
        counted: stand-ins for numbers that forward counts up.
        structure: what it may not change of the model's modules and hooks.
    """

    left_out: frozenset[str] = frozenset()
    observers: Observers = Observers()
    counted: Mapping[str, AttributeChange] = MappingProxyType({})
    structure: Structure = modules_and_hooks


NOTHING_KNOWN = KnownEffects()


class Returned:
    """The forms of the outputs, of assigned attributes, and the calls of hooks.

    torch.export undoes what is set on the adapter and the model.
    """

    form: OutputSpec
    assigned: AssignedAttributes
    hooks: HookCalls


class ForwardFailedError(Exception):
    """The model's forward has failed; the cause says why.

    On any other exception torch leaves the graph so far, and prints all of it.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name != "partial_fx_graph":
            super().__setattr__(name, value)


def model_error(failed: Exception) -> Exception:
    """The error of the model, where the adapter has wrapped it."""
    cause = failed.__cause__ if isinstance(failed, ForwardFailedError) else failed
    assert isinstance(cause, Exception)
    return cause


class TensorsOnly(nn.Module):
    """The model as a function from the tensors of a micro-batch to the tensors that it returns."""

    def __init__(
        self,
        model: nn.Module,
        microbatch: Batch,
        effects: KnownEffects = NOTHING_KNOWN,
        *,
        exported: bool,
    ) -> None:
        """Call this model; what is left on attributes, and hooks are given, are outputs as well."""
        super().__init__()
        self.add_module(ADAPTED, model)
        self.returned = Returned()
        self._microbatch = microbatch
        self._effects = effects
        self._exported = exported

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its arguments: no attribute, which torch.export would take for a part of the model."""
        return tuple(self._microbatch.tensors)

    def copies(self) -> list[Tensor]:
        """Copies of its arguments, as forward may write to them, or have them require gradients."""
        return [x.clone() for x in self._microbatch.tensors]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the model with these tensors; raises `ForwardFailedError`."""
        following = iter(tensors)
        given = self._microbatch.leaves
        leaves = [next(following) if isinstance(leaf, Tensor) else leaf for leaf in given]
        model = self.get_submodule(ADAPTED)
        args, kwargs = unflatten(leaves, self._microbatch.spec)
        if has_cache(model):
            kwargs = {"use_cache": False} | kwargs
        structure = self._effects.structure(model)
        put_stand_ins(model, self._effects.counted)
        watch = AttributeWatch(model)
        # Code that compiles itself, as FlexAttention, may have symbols of its own in a real run.
        is_real = all(type(x) is Tensor for x in tensors)
        with buffers_kept(model):
            try:
                with (
                    interceptable_lists(),
                    same_kernels(is_real=is_real),
                    nullcontext() if is_real else NoDataDependence(),
                    export_flags(exported=self._exported),
                    put_off(self._effects.observers.sites) as calls,
                    reads_refused(),
                ):
                    returned = model(*args, **kwargs)
                    self.returned.form, found = OutputSpec.of(_without_stand_ins(returned))
            except Exception as error:
                raise ForwardFailedError from error
        try:
            check_same(model, structure, self._effects.structure(model))
        except CaptureError as error:
            raise ForwardFailedError from error
        omitted = self._effects.left_out
        # In an order that all processes have in common.
        left = {name: x for name, x in watch.changes().items() if name not in omitted}
        self.returned.assigned, of_attributes = AssignedAttributes.of(left)
        self.returned.hooks, of_hooks = HookCalls.of(calls, self._effects.observers.changes)
        return (*found, *of_attributes, *of_hooks)


def _without_stand_ins(returned: Any) -> Any:
    """The same; raises `CaptureError` for a number among it that has no value in a graph."""
    if any(map(is_stand_in, tree_leaves(returned, is_leaf=is_stand_in))):
        raise CaptureError(
            "forward returns a number that it counts up, or computes where code stays whole.\n"
            "Return the tensor that it comes from, without `item()`, or keep a count in a buffer"
        )
    return returned


def has_cache(model: nn.Module) -> bool:
    """Whether this is a transformers model that would return a cache of keys and values."""
    wanted = bool(getattr(getattr(model, "config", None), "use_cache", False))
    return wanted and "use_cache" in inspect.signature(model.forward).parameters


def check_runs(model: nn.Module, adapter: TensorsOnly) -> None:
    """Run the model as it is.

    Raises:
        Exception: its own, if it does not run on these inputs at all.
    """
    try:
        with preserve_run(model):
            adapter(*adapter.copies())
    except ForwardFailedError as failed:
        error = model_error(failed)
        if isinstance(error, FinalError) or not isinstance(error, CaptureError):
            raise error from None
    except CaptureError:
        pass  # a refused side effect, which the first error names
