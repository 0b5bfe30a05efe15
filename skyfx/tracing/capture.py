"""From a model to a fine-grained torch.fx graph of its operators."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from skyfx.runtime.batches.microbatch import Batch, OutputSpec
from skyfx.runtime.execution.assigned_attributes import AssignedAttributes
from skyfx.runtime.execution.hook_calls import HookCalls
from skyfx.runtime.pipeline import Pipeline
from skyfx.runtime.state.caller_modes import check_function_modes
from skyfx.runtime.state.model_code import ModelCode
from skyfx.runtime.state.reachable_state import check_global_hooks
from skyfx.solver.errors import CaptureError
from skyfx.tracing.effects.first_call import FirstValues
from skyfx.tracing.exporter import Traced, trace
from skyfx.tracing.failures import capture_failure
from skyfx.tracing.leaves.leaf_sites import NOWHERE, Places
from skyfx.tracing.node_names import input_names, is_tensor_attribute, node_ids
from skyfx.tracing.quiet_tracing import quiet_tracing
from skyfx.tracing.tensor_binding import moved, rebind
from skyfx.tracing.torch_internals import any_attribute_name, no_parametrization_cache
from skyfx.tracing.training_mode import in_mode

_capturing = threading.RLock()
"""torch.export keeps its state in globals: one capture at a time in all threads."""

_CURES: dict[type, str] = {
    type: "pass an instance of the class",
    Pipeline: "a pipeline is split already, so pass the model that it was made from",
    FunctionType: "call it in the `forward` of a module, and pass that",
    object: "pass the model itself",
}
"""The cure for each type that is passed instead of a module."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A model captured for one mode and one shape of micro-batch.

    Attributes:
        name: the model's class.
        module: the captured graph; parameters and buffers are the model's own tensors.
        ids: the nodes that a plan places, in order, with their ids. Equal operators of equal
            modules have equal ids in every capture of the model, whatever the mode and shapes.
        outputs: the form of the model's outputs.
        assigned: the form of what forward leaves on attributes.
        hooks: the calls of hooks that only observe.
        settled: attributes that only a first call of the model assigns, always alike.
        microbatch: the inputs of the capture.
        training: whether it was captured for training.
        places: where the model's code became leaves.
        first: what a first call of the model has made of its parameters for this capture.
    """

    name: str
    module: fx.GraphModule
    ids: dict[fx.Node, str]
    outputs: OutputSpec
    assigned: AssignedAttributes
    hooks: HookCalls
    settled: frozenset[str]
    microbatch: Batch
    training: bool
    places: Places
    first: FirstValues | None = None

    @property
    def output_nodes(self) -> list[fx.Node]:
        """The nodes of what the model returns, of what it leaves, and of what hooks are given."""
        (output,) = self.module.graph.find_nodes(op="output")
        return list(output.args[0])

    def tensors_of(self, node: fx.Node) -> list[fx.Node]:
        """The reads of the parameters and buffers that live with a placed node."""
        reads = [x for x in node.all_input_nodes if is_tensor_attribute(x) and x not in self.ids]
        return [node] if is_tensor_attribute(node) else reads

    def with_apart(self, names: Collection[str]) -> "Capture":
        """The same, with these parameters and buffers as nodes that a plan places apart."""
        inputs = [self.ids[x] for x in self.module.graph.find_nodes(op="placeholder")]
        return replace(self, ids=node_ids(self.module.graph, inputs, names))

    def attribute(self, node: fx.Node) -> Any:
        """The value that a `get_attr` node reads: a parameter, buffer, constant or subgraph."""
        return attrgetter(str(node.target))(self.module)


def capture(
    model: nn.Module,
    inputs: Any = None,
    *,
    training: bool = True,
    others: Sequence[Batch] = (),
    places: Places = NOWHERE,
) -> Capture:
    """Capture a model.

    Args:
        model: any module; its mode, parameters and buffers are left as they are.
        inputs: one micro-batch: a tensor, a tuple of positional or a dict of keyword arguments.
            For a transformers model it may be left out.
        training: capture the model as it trains, each module in its own mode; or as it infers,
            after its own `eval()` if it is in training mode.
        others: more micro-batches; where the model's code depends on values, they show how.
        places: those of an earlier capture, to begin with.

    Raises:
        CaptureError: the model cannot be captured; the message names the line of its code.
        TypeError: the model is no module, or the inputs are of a wrong type.
        ValueError: a hook of all modules is registered, or a mode of torch's functions is on.
    """
    check_global_hooks()
    check_function_modes()
    microbatch = _placed(model, example_batch(model, inputs))
    same = [_placed(model, x) for x in others if x.signature == microbatch.signature]
    traced_once = partial(trace, model, microbatch, same, places, training=training)
    with (
        _capturing,
        any_attribute_name(),
        quiet_tracing(),
        in_mode(model, training=training),
        on_one_device(model) as real,
        torch.inference_mode(False),
    ):
        try:
            traced = _with_gradients(model, traced_once, training=training)
        except Exception as error:
            raise capture_failure(model, microbatch, error) from error
        rebind(traced.module, real)
    check_returned(model, traced.outputs)
    if not traced.outputs.num_tensors:
        raise CaptureError(f"{type(model).__name__} returns no tensor, so there is nothing to run")
    return Capture(
        name=type(model).__name__,
        module=traced.module,
        ids=node_ids(traced.module.graph, input_names(model, microbatch)),
        outputs=traced.outputs,
        assigned=traced.assigned,
        hooks=traced.hooks,
        settled=traced.settled,
        microbatch=microbatch,
        training=training,
        places=traced.places,
        first=traced.first,
    )


def check_returned(model: nn.Module, outputs: OutputSpec) -> None:
    """Refuse an object among the outputs that would be None.

    Raises:
        CaptureError: names it, and the cure.
    """
    if outputs.dropped:
        raise CaptureError(
            f"{type(model).__name__} returns an object of {outputs.dropped}, a pipeline only "
            "tensors, nested in tuples, lists, dicts and dataclasses.\nReturn the tensors that it "
            "is made of, and make it in loss_fn"
        )


def _with_gradients(model: nn.Module, traced: Callable[[], Traced], *, training: bool) -> Traced:
    """The graph. Gradients are on in eval mode too, as torch's modules take another way without.

    They are off where the model does not run with them, such as FlexAttention on CPUs, and where
    its own code asks for them: plain torch infers without.
    """
    if training:
        with torch.enable_grad():
            return traced()
    asks = not ModelCode(model).names.isdisjoint(("is_grad_enabled", "requires_grad"))
    try:
        with torch.set_grad_enabled(not asks):
            return traced()
    except Exception:
        with suppress(Exception), torch.set_grad_enabled(asks):
            return traced()
        raise


def example_batch(model: nn.Module, inputs: Any) -> Batch:
    """The example inputs as a batch; a transformers model that gets None has its own.

    Raises:
        CaptureError: there are no inputs, and the model has none of its own; or it is a script.
        TypeError: the model is no module, or the inputs are of a wrong type.
    """
    if not isinstance(model, nn.Module):
        is_class = isinstance(model, type)
        kind = f"the class {model.__name__}" if is_class else f"a {type(model).__name__}"
        cure = next(text for types, text in _CURES.items() if isinstance(model, types))
        raise TypeError(f"model is {kind}, expected a torch.nn.Module: {cure}")
    if any(is_lazy(x) for x in model.parameters()):
        raise CaptureError(
            f"{type(model).__name__} has lazy modules, whose parameters are not there yet: call it "
            "once on a batch before"
        )
    tensors = (*model.parameters(), *model.buffers())
    if any(x.is_inference() and not x.is_meta for x in tensors):
        raise CaptureError(
            f"{type(model).__name__} was made within torch.inference_mode, and autograd saves none "
            "of its tensors: make it within torch.no_grad instead"
        )
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            what = f"{name!r}, a part of the model," if name else "the model"
            raise CaptureError(
                f"{what} is compiled by torch.jit, and only torch can look into that: pass the "
                "model without `torch.jit.script` or `torch.jit.trace`"
            )
    if inputs is None:
        inputs = getattr(model, "dummy_inputs", None)
    if inputs is None:
        raise CaptureError(
            f"{type(model).__name__} brings no example inputs of its own: pass example_inputs, a "
            "tensor, a tuple of positional or a dict of keyword arguments of one batch"
        )
    return inputs if isinstance(inputs, Batch) else Batch.of(inputs)


def _placed(model: nn.Module, batch: Batch) -> Batch:
    """The batch on the device that the model is captured on, of tensors that autograd can save."""
    with torch.inference_mode(False):
        kept = (
            x.clone() if isinstance(x, Tensor) and x.is_inference() else x for x in batch.leaves
        )
        batch = replace(batch, leaves=tuple(kept))
    if any(x.is_meta for x in model.parameters()):
        return batch.to(torch.device("meta"))
    return batch if any(x.is_meta for x in batch.tensors) else batch.to(torch.device("cpu"))


@contextmanager
def on_one_device(model: nn.Module) -> Iterator[Mapping[int, Tensor]]:
    """Within it, a model is on the CPU, or on the meta device if any tensor has no values.

    A split model is on the devices of its stages, and a model without weights may have its buffers.
    Tensors on other devices have stand-ins within it; yields the real ones by the stand-ins' `id`s.
    """
    tensors = [*model.parameters(), *model.buffers()]
    device = torch.device("meta" if any(x.is_meta for x in tensors) else "cpu")
    pairs = [(x, moved(x, device)) for x in tensors if x.device != device]
    back = {id(stand_in): x for x, stand_in in pairs}
    rebind(model, {id(x): stand_in for x, stand_in in pairs})
    try:
        with no_parametrization_cache():
            yield back
    finally:
        rebind(model, back)
