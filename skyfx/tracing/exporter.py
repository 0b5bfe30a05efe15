"""The model as torch.export traces it.

torch.export takes a model that returns tensors, from arguments that are tensors. One thin
adapter makes both true of any model: constants and nesting of the arguments stay with it, and of
what the model returns it passes on the tensors (transformers' caches and dataclasses go no
further). Calls that torch.export cannot follow become leaves (see `leaf_selection`).
"""

import inspect
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from skyfx.runtime.execution.assigned_attributes import AssignedAttributes
from skyfx.runtime.execution.microbatch import Batch, OutputSpec
from skyfx.runtime.model_state import preserve_state
from skyfx.runtime.pytree import tree_leaves, unflatten
from skyfx.solver.errors import CaptureError
from skyfx.tracing import autograd_effects, side_effects
from skyfx.tracing.attribute_effects import (
    AttributeEffects,
    attribute_effects,
    is_constant,
    line_of,
    remembered_tensors,
)
from skyfx.tracing.attribute_watch import AttributeWatch
from skyfx.tracing.data_dependence import NoDataDependence
from skyfx.tracing.leaf_calls import buffers_kept, put_leaves
from skyfx.tracing.leaf_selection import CalledOtherwiseError, LeafSelection
from skyfx.tracing.mutable_attributes import RegisteredBuffers, written_attributes
from skyfx.tracing.node_names import ADAPTED, graphs_in
from skyfx.tracing.torch_internals import any_attribute_name, export_flags, interceptable_lists

Adapter = Callable[[], "_TensorsOnly"]
"""Makes an adapter: torch.export needs a fresh one each time."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A model as torch.export has traced it.

    Attributes:
        module: the captured graph; it returns the tensors of the outputs, then of the attributes.
        outputs: the form of what the model returns.
        assigned: the form of what it leaves on attributes.
        settled: attributes that only the first call of the model assigns.
    """

    module: fx.GraphModule
    outputs: OutputSpec
    assigned: AssignedAttributes
    settled: frozenset[str] = frozenset()


def trace(model: nn.Module, microbatch: Batch, *, training: bool) -> Traced:
    """The captured graph, and the form of its outputs.

    Plain tensors that forward changes have become buffers of the model then.

    Raises:
        CaptureError: the graph would leave something out.
        Exception: the model's own, or torch.export's where no call can become a leaf instead.
    """
    buffers, effects = RegisteredBuffers(model), AttributeEffects()
    left_out: frozenset[str] = frozenset()
    try:
        while True:
            traced = _trace(model, microbatch, left_out, training=training)
            changed = written_attributes(model, traced.module)
            if not changed and traced.assigned.names <= effects.renewed.keys():
                assigned = traced.assigned.by(effects.renewed)
                return replace(traced, assigned=assigned, settled=effects.settled)
            if not changed:
                effects = _effects(model, microbatch)
                changed = remembered_tensors(model, effects)
                _check_settled(model, traced, effects.settled)
                left_out |= traced.assigned.names - effects.renewed.keys()
            buffers.register(changed)
    except BaseException:
        buffers.undo()
        raise


def _effects(model: nn.Module, microbatch: Batch) -> AttributeEffects:
    def run() -> Sequence[Tensor]:
        adapter = _TensorsOnly(model, microbatch, exported=False)
        outputs: Sequence[Tensor] = adapter(*adapter.copies())
        return outputs[: len(outputs) - adapter.returned.assigned.form.num_tensors]

    return attribute_effects(model, run)


def _check_settled(model: nn.Module, traced: Traced, settled: frozenset[str]) -> None:
    """Refuse an attribute that keeps a value of the first call's inputs or parameters.

    Raises:
        CaptureError: names it, its line and the cure.
    """
    (output,) = traced.module.graph.find_nodes(op="output")
    nodes = output.args[0][traced.outputs.num_tensors :]
    values = traced.assigned.form.restore(nodes)
    for (name, _), value in zip(traced.assigned.ways, values, strict=True):
        if name in settled and not all(map(is_constant, tree_leaves(value))):
            raise CaptureError(
                f"forward keeps {name!r} of its first call{line_of(model, name)}, and stages would "
                "compute it in each call: call the model once on such a batch before"
            )


def _trace(
    model: nn.Module, microbatch: Batch, left_out: frozenset[str], *, training: bool
) -> Traced:
    """One graph. The first attempts have no leaves, and do not tell the model of the export."""
    errors: list[Exception] = []
    ways = list(itertools.product((False, True), (False, True)))
    while ways:
        with_leaves, exported = ways.pop(0)
        adapter = partial(_TensorsOnly, model, microbatch, left_out, exported=exported)
        selection = LeafSelection(model)
        while True:
            try:
                return _export(model, adapter, selection, training=training)
            except Exception as failed:
                errors.append(_cause(failed))
            if len(errors) == 1:
                _check_runs(model, adapter())
                if type(errors[0]) is RuntimeError:
                    # An operator that runs, but not on the tensors that torch traces with: it
                    # becomes a leaf before the model, which sees the export, may avoid it.
                    ways.sort(key=lambda way: way[1])
            if isinstance(errors[-1], CalledOtherwiseError):
                break
            if not (with_leaves and _add_leaf(model, adapter, selection, errors[-1])):
                break
    raise errors[0] from None


def _check_runs(model: nn.Module, adapter: "_TensorsOnly") -> None:
    """Run the model as it is.

    Raises:
        Exception: its own, if it does not run on these inputs at all.
    """
    try:
        with preserve_state(model):
            adapter(*adapter.copies())
    except _ForwardFailedError as failed:
        if not isinstance(failed.__cause__, CaptureError):
            raise _cause(failed) from None
    except CaptureError:
        pass  # a refused side effect, which the first error names


def _add_leaf(
    model: nn.Module, adapter: Adapter, selection: LeafSelection, error: Exception
) -> bool:
    """Make one more call a leaf, because of this error; False where that is impossible."""
    while selection.add(error):
        try:
            with preserve_state(model):
                selection.record(partial(adapter(), *adapter().copies()))
        except _ForwardFailedError as failed:
            error = _cause(failed)
            if not isinstance(error, CaptureError):
                return False  # the model's own
        else:
            return True
    return False


def _export(
    model: nn.Module, adapter: Adapter, selection: LeafSelection, *, training: bool
) -> Traced:
    """The model as torch.export traces it.

    Raises:
        CaptureError: forward has a refused side effect.
    """
    once = adapter()
    with (
        any_attribute_name(),
        side_effects.refuse_foreign_rng(),
        autograd_effects.traceable(training=training),
        preserve_state(model),  # each attempt begins with the same numbers, lists and tensors
    ):
        with selection.stand_ins():
            program = torch.export.export(once, once.tensors, strict=False)
        module = program.module(check_guards=False)
        assert isinstance(module, fx.GraphModule)
        put_leaves(module, selection.calls)
        _drop_assertions(module)
    return Traced(module, once.returned.form, once.returned.assigned)


class _Returned:
    """The forms of the outputs and of assigned attributes.

    torch.export undoes what is set on the adapter and the model.
    """

    form: OutputSpec
    assigned: AssignedAttributes


class _ForwardFailedError(Exception):
    """The model's forward has failed; the cause says why.

    On any other exception torch leaves the graph so far, and prints all of it.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name != "partial_fx_graph":
            super().__setattr__(name, value)


def _cause(failed: Exception) -> Exception:
    """The error of the model, where the adapter has wrapped it."""
    cause = failed.__cause__ if isinstance(failed, _ForwardFailedError) else failed
    assert isinstance(cause, Exception)
    return cause


class _TensorsOnly(nn.Module):
    """The model as a function from the tensors of a micro-batch to the tensors that it returns."""

    def __init__(
        self,
        model: nn.Module,
        microbatch: Batch,
        left_out: Collection[str] = (),
        *,
        exported: bool,
    ) -> None:
        """Call this model; attributes that it assigns are outputs, but for those `left_out`."""
        super().__init__()
        self.add_module(ADAPTED, model)
        self.returned = _Returned()
        self._microbatch = microbatch
        self._left_out = left_out
        self._exported = exported

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Its arguments: no attribute, which torch.export would take for a part of the model."""
        return tuple(self._microbatch.tensors)

    def copies(self) -> list[Tensor]:
        """Copies of its arguments, as forward may write to them, or have them require gradients."""
        return [x.clone() for x in self._microbatch.tensors]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        following = iter(tensors)
        given = self._microbatch.leaves
        leaves = [next(following) if isinstance(leaf, Tensor) else leaf for leaf in given]
        model = self.get_submodule(ADAPTED)
        args, kwargs = unflatten(leaves, self._microbatch.spec)
        if has_cache(model):
            kwargs = {"use_cache": False} | kwargs
        watch = AttributeWatch(model)
        with buffers_kept(model):
            try:
                with (
                    interceptable_lists(),
                    NoDataDependence(),
                    export_flags(exported=self._exported),
                ):
                    self.returned.form, found = OutputSpec.of(model(*args, **kwargs))
            except Exception as error:
                raise _ForwardFailedError from error
        changes = watch.changes()
        left = {name: changes[name] for name in changes.keys() - set(self._left_out)}
        self.returned.assigned, of_attributes = AssignedAttributes.of(left)
        return (*found, *of_attributes)


def has_cache(model: nn.Module) -> bool:
    """Whether this is a transformers model that would return a cache of keys and values."""
    wanted = bool(getattr(getattr(model, "config", None), "use_cache", False))
    return wanted and "use_cache" in inspect.signature(model.forward).parameters


def _drop_assertions(module: fx.GraphModule) -> None:
    """Remove checks that tie the graph to the device it was captured on."""
    check = torch.ops.aten._assert_tensor_metadata.default
    for part in graphs_in(module):
        for node in part.graph.find_nodes(op="call_function", target=check):
            part.graph.erase_node(node)
        part.recompile()
