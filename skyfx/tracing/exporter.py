"""The model as torch.export traces it.

An adapter makes any model one from tensors to tensors. Calls that torch.export cannot follow become
leaves (see `leaf_selection`).
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from skyfx.runtime.batches.microbatch import Batch, OutputSpec
from skyfx.runtime.execution.assigned_attributes import AssignedAttributes
from skyfx.runtime.execution.hook_calls import HookCalls
from skyfx.runtime.model_state import preserve_run, preserve_state
from skyfx.solver.errors import CaptureError
from skyfx.tracing.adapter import (
    NOTHING_KNOWN,
    ForwardFailedError,
    KnownEffects,
    TensorsOnly,
    check_runs,
    model_error,
)
from skyfx.tracing.effects import autograd_effects, first_call, side_effects
from skyfx.tracing.effects.attribute_effects import (
    AttributeEffects,
    Counted,
    attribute_effects,
    remembered_tensors,
)
from skyfx.tracing.effects.backward_values import copy_for_backward
from skyfx.tracing.effects.eager_ways import ChosenAttention, follow_eager, modules_left
from skyfx.tracing.effects.made_generators import begin_anew
from skyfx.tracing.effects.mutable_attributes import RegisteredBuffers, written_attributes
from skyfx.tracing.effects.observing_hooks import observing_hooks
from skyfx.tracing.effects.recomputed_writes import repeat_writes
from skyfx.tracing.failures import FinalError, model_line
from skyfx.tracing.graph_tidying import tidy
from skyfx.tracing.late_code import late_code
from skyfx.tracing.leaves.leaf_calls import put_leaves
from skyfx.tracing.leaves.leaf_selection import CalledOtherwiseError, LeafSelection
from skyfx.tracing.leaves.leaf_sites import NOWHERE, Places
from skyfx.tracing.leaves.other_values import move_parameters

Adapter = Callable[[], TensorsOnly]
"""Makes an adapter: torch.export needs a fresh one each time."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A model as torch.export has traced it.

    Attributes:
        module: the captured graph; it returns the tensors of the outputs, then of the attributes,
            then those that hooks are given.
        outputs: the form of what the model returns.
        assigned: the form of what it leaves on attributes.
        hooks: the calls of hooks that only observe.
        settled: attributes that only the first call of the model assigns.
        places: where the model's code became leaves.
        first: what a first call of the model has made of its parameters.
    """

    module: fx.GraphModule
    outputs: OutputSpec
    assigned: AssignedAttributes
    hooks: HookCalls
    settled: frozenset[str] = frozenset()
    places: Places = NOWHERE
    first: first_call.FirstValues | None = None


def trace(
    model: nn.Module,
    microbatch: Batch,
    others: Sequence[Batch] = (),
    places: Places = NOWHERE,
    *,
    training: bool,
) -> Traced:
    """The captured graph, and the form of its outputs.

    Plain tensors that forward changes have become buffers of the model then.

    Args:
        model: the module to trace.
        microbatch: its inputs.
        others: micro-batches of the same form, which the graph has to suit as well.
        places: where an earlier capture has leaves, to begin with.
        training: whether gradients are needed.

    Raises:
        CaptureError: the graph would leave something out.
        Exception: the model's own, or torch.export's where no call can become a leaf instead.
    """
    buffers, effects = RegisteredBuffers(model), AttributeEffects()
    first = first_call.FirstValues.of(model)
    known = _known(model, microbatch)
    try:
        while True:
            try:
                traced = _trace(model, microbatch, others, places, known, training=training)
            except first_call.FirstCallError:
                if known.structure is first_call.module_names:
                    raise
                run = _run_of(model, microbatch, KnownEffects(structure=first_call.anything))
                first_call.make_first_call(model, run, training=training)
                known = _known(model, microbatch, first_call.module_names)
                continue
            changed = written_attributes(model, traced.module)
            if not changed and traced.assigned.names <= effects.renewed.keys():
                if training:
                    copy_for_backward(traced.module, effects.renewed)
                assigned = traced.assigned.by(effects.renewed)
                return replace(traced, assigned=assigned, settled=effects.settled, first=first)
            if not changed:
                effects = attribute_effects(model, microbatch, partial(_run_with, model, known))
                changed = remembered_tensors(model, effects)
                (output,) = traced.module.graph.find_nodes(op="output")
                left = output.args[0][traced.outputs.num_tensors :]
                once = (traced.assigned, left, effects.settled, _run_of(model, microbatch))
                if first.keep(model, *once, training=training):
                    effects = AttributeEffects()
                    continue
                more = traced.assigned.names - effects.renewed.keys()
                known = known._replace(left_out=known.left_out | more, counted=effects.counted)
            buffers.register(changed)
    except BaseException:
        buffers.undo()
        first.undo()
        raise


def _known(
    model: nn.Module,
    microbatch: Batch,
    structure: first_call.Structure = first_call.modules_and_hooks,
) -> KnownEffects:
    """What is known before the first graph."""
    known = KnownEffects(structure=structure)
    return known._replace(observers=observing_hooks(model, _run_of(model, microbatch, known)))


def _run_of(
    model: nn.Module, microbatch: Batch, known: KnownEffects = NOTHING_KNOWN
) -> Callable[[], Sequence[Tensor]]:
    """Calls the model itself; the call returns the tensors of the outputs."""

    def run() -> Sequence[Tensor]:
        adapter = TensorsOnly(model, microbatch, known, exported=False)
        outputs: Sequence[Tensor] = adapter(*adapter.copies())
        return outputs[: adapter.returned.form.num_tensors]

    return run


def _run_with(
    model: nn.Module, known: KnownEffects, microbatch: Batch, counted: Counted
) -> Sequence[Tensor]:
    """The same, with these stand-ins for what forward counts up."""
    return _run_of(model, microbatch, known._replace(counted=counted))()


def _trace(
    model: nn.Module,
    microbatch: Batch,
    others: Sequence[Batch],
    places: Places,
    known: KnownEffects,
    *,
    training: bool,
) -> Traced:
    """One graph. The first attempts have no leaves, and do not tell the model of the export."""
    if places != NOWHERE:
        with suppress(Exception):
            adapter = partial(TensorsOnly, model, microbatch, known, exported=False)
            selection = LeafSelection(model, places)
            _record(model, adapter, selection)
            return _export(model, adapter, selection, training=training)
    errors: list[Exception] = []
    ways = [(*way, False) for way in itertools.product((False, True), (False, True))]
    while ways:
        with_leaves, exported, trusting = ways.pop(0)
        adapter = partial(TensorsOnly, model, microbatch, known, exported=exported)
        selection = LeafSelection(model, trusting=trusting)
        while True:
            try:
                traced = _export(model, adapter, selection, training=training)
                # Each but the first with what the one before has left, such as a pointer.
                following = (microbatch, *(others or (microbatch,))) if selection.calls else ()
                with preserve_run(model) if following else nullcontext():
                    for other in following:
                        again = TensorsOnly(model, other, known, exported=exported)
                        selection.hold_against(partial(again, *again.copies()))
                    if training and selection.places.operators:
                        move_parameters(model)  # and what is fixed must not move with them
                        selection.hold_against(partial(adapter(), *adapter().copies()))
                return traced
            except Exception as failed:
                errors.append(model_error(failed))
            if isinstance(errors[-1], FinalError):
                raise errors[-1]
            if len(errors) == 1:
                check_runs(model, adapter())
                if type(errors[0]) is RuntimeError:
                    # An operator that runs, but not on the tensors that torch traces with: it
                    # becomes a leaf before the model, which sees the export, may avoid it.
                    ways.sort(key=lambda way: way[1])
            if isinstance(errors[-1], CalledOtherwiseError):
                break
            if not with_leaves:
                break
            blocking = _add_leaf(model, adapter, selection, errors[-1])
            if blocking is not None:
                if not (exported or trusting):
                    _tell_of(blocking, errors[0])
                break
        if selection.is_doubtful:  # no wider place could stay whole
            ways.append((with_leaves, exported, True))
    raise errors[0] from None


def _tell_of(blocking: Exception, first: Exception) -> None:
    """Add to the first error why what is around it cannot stay whole."""
    text = (str(blocking).strip() or repr(blocking)).splitlines()[0]
    if text not in str(first):
        first.add_note(f"What is around it cannot stay whole{model_line(blocking)}: {text}")


def _add_leaf(
    model: nn.Module, adapter: Adapter, selection: LeafSelection, error: Exception
) -> Exception | None:
    """Make one more call a leaf, because of this error; returns why that is impossible."""
    while selection.add(error):
        try:
            _record(model, adapter, selection)
        except ForwardFailedError as failed:
            error = model_error(failed)
            if isinstance(error, FinalError):
                raise error from None
            if not isinstance(error, CaptureError):
                return error  # the model's own
        else:
            return None
    return error


def _record(model: nn.Module, adapter: Adapter, selection: LeafSelection) -> None:
    with preserve_run(model):
        selection.record(partial(adapter(), *adapter().copies()))


def _export(
    model: nn.Module, adapter: Adapter, selection: LeafSelection, *, training: bool
) -> Traced:
    """The model as torch.export traces it.

    Raises:
        CaptureError: forward has a refused side effect.
    """
    once = adapter()
    with (
        autograd_effects.traceable(training=training),
        preserve_state(model),  # each attempt begins with the same numbers, lists and tensors
        side_effects.refuse_foreign_rng(model),
        side_effects.refuse_forked_rng(),
        modules_left(),
        ChosenAttention(),
    ):
        with late_code():
            with selection.stand_ins():
                program = torch.export.export(once, once.tensors, strict=False)
            module = program.module(check_guards=False)
        if training:
            autograd_effects.check_constants(model, program.constants)
        follow_eager(module)
        put_leaves(module, selection.calls)
        if training:
            repeat_writes(module)
        begin_anew(model, module)
        tidy(module)
    returned = once.returned
    # What stays whole changes for itself, as hooks that only observe do.
    hooks = replace(returned.hooks, changes=returned.hooks.changes | selection.changes)
    return Traced(module, returned.form, returned.assigned, hooks, places=selection.places)
