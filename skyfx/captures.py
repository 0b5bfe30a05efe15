"""From a model to a fine-grained torch.fx graph of its operators.

`torch.export` takes a model that returns tensors, from arguments that are tensors. One thin
adapter makes both true of any model: constants and nesting of the arguments stay with it, and of
what the model returns it passes on the tensors (transformers' caches and dataclasses go no
further).
"""

import inspect
import sysconfig
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from skyfx import hazards
from skyfx.names import ADAPTED, input_names, is_tensor_attribute, node_ids
from skyfx.opaque import Opaque
from skyfx.runtime.microbatch import Batch, OutputForm
from skyfx.runtime.nesting import unflatten
from skyfx.solver.errors import CaptureError
from skyfx.undisturbed import undisturbed

__all__: list[str] = ["Capture", "capture", "dummy_inputs"]

_capturing = threading.RLock()
"""torch.export keeps what it is doing in globals: one capture at a time in all threads."""


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
    # Gradients are on in eval mode too: without them some modules take another, fused path.
    with (
        _capturing,
        _mode(model, training=training),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        try:
            module, outputs = _graph(model, microbatch, training=training)
        except Exception as error:
            raise CaptureError(_why(model, microbatch, error)) from error
    if not any(outputs.is_tensor):
        raise CaptureError(f"{type(model).__name__} returns no tensor, so there is nothing to run")
    _drop_assertions(module.graph)
    return Capture(
        name=type(model).__name__,
        module=module,
        ids=node_ids(module.graph, input_names(model, microbatch)),
        outputs=outputs,
        microbatch=microbatch,
        training=training,
    )


def _graph(
    model: nn.Module, microbatch: Batch, *, training: bool
) -> tuple[fx.GraphModule, OutputForm]:
    """The captured graph and the form of the outputs; what cannot be captured stays whole in it."""
    whole, first = Opaque(model), None
    while True:
        try:
            module, outputs = _export(model, microbatch, whole, training=training)
        except Exception as failed:
            error = failed.__cause__ if isinstance(failed, _ForwardFailedError) else failed
            assert isinstance(error, Exception)
            first = first or error
            if not _keep_whole(model, microbatch, whole, error):
                raise first from None
        else:
            return module, outputs


def _keep_whole(model: nn.Module, microbatch: Batch, whole: Opaque, error: Exception) -> bool:
    """Keep one more submodule whole, because of this error; False where that cannot be.

    Raises:
        Exception: the model's own, where it does not run on these inputs at all.
    """
    again: Exception | None = error
    while again is not None:
        if not whole.add(again):
            return False
        try:
            with undisturbed(model), hazards.numbers_kept(model):
                whole.see(lambda: _TensorsOnly(model, microbatch)(*microbatch.tensors))
        except _ForwardFailedError as failed:
            cause = failed.__cause__
            assert isinstance(cause, Exception)
            if not isinstance(cause, CaptureError):
                raise cause from None
            again = cause
        else:
            again = None
    return True


def _export(
    model: nn.Module, microbatch: Batch, whole: Opaque, *, training: bool
) -> tuple[fx.GraphModule, OutputForm]:
    """The model as torch.export traces it, and the form of the outputs.

    Raises:
        CaptureError: forward counts something, or another hazard.
    """
    adapter, again = _TensorsOnly(model, microbatch), _TensorsOnly(model, microbatch)
    tensors = tuple(microbatch.tensors)
    with (
        hazards.own_random(),
        hazards.own_gradients() if training else nullcontext(),
        hazards.numbers_kept(model),
    ):
        with whole.standing_in():
            program = torch.export.export(adapter, tensors, strict=False)
        if changed := adapter.returned.changed:
            # Either a counter, or the note of a cache, which is filled once.
            hazards.set_numbers(model, changed)
            with suppress(Exception), whole.standing_in():
                torch.export.export(again, tensors, strict=False)
            hazards.check_numbers(changed, again.returned.changed)
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    hazards.check_operators(module.graph)
    whole.resolve(module)
    return module, adapter.returned.form


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
    """Where the adapter notes the outputs' form, and the numbers of the model that have changed.

    torch.export undoes what is set on the adapter and the model.
    """

    form: OutputForm
    changed: Mapping[str, float] = MappingProxyType({})


class _ForwardFailedError(Exception):
    """The model's forward has failed; the cause says why.

    On any other exception torch leaves the graph so far, and prints all of it.
    """

    @property
    def partial_fx_graph(self) -> str:
        raise AttributeError

    @partial_fx_graph.setter
    def partial_fx_graph(self, graph: str) -> None:
        pass


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
        args, kwargs = unflatten(leaves, self._microbatch.spec)
        if _has_cache(model):
            kwargs = {"use_cache": False} | kwargs
        buffers, numbers = dict(model.named_buffers()), hazards.numbers(model)
        try:
            self.returned.form, found = OutputForm.of(model(*args, **kwargs))
        except Exception as error:
            raise _ForwardFailedError from error
        hazards.check_buffers(buffers, dict(model.named_buffers()))
        self.returned.changed = dict(hazards.numbers(model).items() - numbers.items())
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
    kind = "" if isinstance(error, CaptureError) else f"{type(error).__name__}: "
    return (
        f"{name} cannot be captured with inputs of shapes {shapes}"
        f"{_model_line(error)}: {kind}{first_line}"
    )


def _model_line(error: Exception) -> str:
    """The innermost line of code that is neither torch's, Python's nor ours."""
    python = Path(sysconfig.get_path("stdlib"))
    others = [Path(torch.__file__).parent, Path(__file__).parent]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        for path in [Path(frame.filename)]
        if path.is_absolute()  # and not `<string>`, which torch has generated
        and not any(path.is_relative_to(other) for other in others)
        and (not path.is_relative_to(python) or "site-packages" in path.parts)
    ]
    return f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
