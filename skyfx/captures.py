"""From a model to a fine-grained torch.fx graph of its operators.

`torch.export` takes a model that returns tensors, from arguments that are tensors. One thin
adapter makes both true of any model: constants and nesting of the arguments stay with it, and of
what the model returns it passes on the tensors (transformers' caches and dataclasses go no
further).
"""

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from skyfx.names import ADAPTED, input_names, is_tensor_attribute, node_ids
from skyfx.runtime.microbatch import Batch, OutputForm
from skyfx.solver.errors import CaptureError

__all__: list[str] = ["Capture", "capture", "dummy_inputs"]


@dataclass(frozen=True, slots=True)
class Capture:
    """A model captured for one mode and one shape of micro-batch.

    Attributes:
        name: the model's class.
        module: the captured graph; parameters and buffers are the model's own tensors.
        ids: the nodes that a plan places, in order, with their ids. Equal operators of equal
            modules have equal ids in every capture of the model, whatever the mode and shapes.
        outputs: the form of what the model returns.
        microbatch: the inputs that it was captured with.
        training: whether it was captured for training.
    """

    name: str
    module: fx.GraphModule
    ids: dict[fx.Node, str]
    outputs: OutputForm
    microbatch: Batch
    training: bool

    @property
    def output_nodes(self) -> list[fx.Node]:
        """The nodes whose values the model returns, `(num_outputs,)`."""
        (output,) = self.module.graph.find_nodes(op="output")
        return list(output.args[0])

    def tensors_of(self, node: fx.Node) -> list[fx.Node]:
        """The reads of the parameters and buffers that live with a placed node."""
        reads = [x for x in node.all_input_nodes if is_tensor_attribute(x) and x not in self.ids]
        return [node] if is_tensor_attribute(node) else reads

    def attribute(self, node: fx.Node) -> Any:
        """What a `get_attr` node reads: a parameter, a buffer, a constant, or a region's graph."""
        value: Any = self.module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return value


def capture(model: nn.Module, inputs: Any = None, *, training: bool = True) -> Capture:
    """Capture a model.

    Args:
        model: any module; its mode, parameters and buffers are left as they are.
        inputs: one micro-batch: a tensor, a tuple of positional or a dict of keyword arguments.
            For a transformers model it may be left out.
        training: capture the model as it trains (submodules that are in eval mode while the model
            itself is in training mode stay so), or as it infers.

    Raises:
        CaptureError: the model cannot be captured; the message names the line of its code.
    """
    microbatch = inputs if isinstance(inputs, Batch) else Batch.of(dummy_inputs(model, inputs))
    adapter = _TensorsOnly(model, microbatch)
    with _mode(model, training=training):
        try:
            program = torch.export.export(adapter, tuple(microbatch.tensors), strict=False)
        except Exception as error:
            raise CaptureError(_why(model, microbatch, error)) from error
    if not any(adapter.returned.form.is_tensor):
        raise CaptureError(f"{type(model).__name__} returns no tensor, so there is nothing to run")
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    _drop_assertions(module.graph)
    return Capture(
        name=type(model).__name__,
        module=module,
        ids=node_ids(module.graph, input_names(model, microbatch)),
        outputs=adapter.returned.form,
        microbatch=microbatch,
        training=training,
    )


def dummy_inputs(model: nn.Module, inputs: Any) -> Any:
    """The inputs, or where there are none those that a transformers model brings along.

    Raises:
        CaptureError: there are none, and the model brings none along.
    """
    if inputs is None:
        inputs = getattr(model, "dummy_inputs", None)
    if inputs is None:
        raise CaptureError(
            f"{type(model).__name__} brings no example inputs of its own: pass example_inputs, a "
            "tensor, a tuple of positional or a dict of keyword arguments of one batch"
        )
    return inputs


class _Returned:
    """Where the adapter notes the outputs' form: torch.export undoes what it sets on itself."""

    form: OutputForm


class _TensorsOnly(nn.Module):
    """The model as a function from the tensors of a micro-batch to the tensors that it returns."""

    def __init__(self, model: nn.Module, microbatch: Batch) -> None:
        super().__init__()
        self.add_module(ADAPTED, model)
        self.returned = _Returned()
        self._microbatch = microbatch

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        following = iter(tensors)
        leaves = [
            next(following) if isinstance(leaf, Tensor) else leaf
            for leaf in self._microbatch.leaves
        ]
        model = self.get_submodule(ADAPTED)
        args, kwargs = pytree.tree_unflatten(leaves, self._microbatch.spec)
        if _has_cache(model):
            kwargs = {"use_cache": False} | kwargs
        self.returned.form, found = OutputForm.of(model(*args, **kwargs))
        return tuple(found)


def _has_cache(model: nn.Module) -> bool:
    """Whether this is a transformers model that would return a cache of keys and values."""
    config = getattr(model, "config", None)
    takes_it = "use_cache" in inspect.signature(model.forward).parameters
    return takes_it and bool(getattr(config, "use_cache", False))


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The model in the mode to capture, each submodule back in its own afterwards."""
    before = {module: module.training for module in model.modules()}
    if not training:
        model.eval()
    elif not model.training:
        model.train()
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


def _drop_assertions(graph: fx.Graph) -> None:
    """Remove checks that tie the graph to the device it was captured on."""
    for node in graph.find_nodes(
        op="call_function", target=torch.ops.aten._assert_tensor_metadata.default
    ):
        graph.erase_node(node)


def _why(model: nn.Module, microbatch: Batch, error: Exception) -> str:
    name, first_line = type(model).__name__, (str(error).strip() or repr(error)).splitlines()[0]
    shapes = ", ".join(str(tuple(x.shape)) for x in microbatch.tensors)
    return (
        f"{name} cannot be captured with inputs of shapes {shapes}"
        f"{_model_line(error)}: {type(error).__name__}: {first_line}"
    )


def _model_line(error: Exception) -> str:
    """The innermost line of code that is neither torch's nor ours."""
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(own)
    ]
    return f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
