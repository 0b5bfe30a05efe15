"""Plain tensors that a forward changes, made buffers for good.

    self.ema.mul_(0.9)             in place
    self.state = f(self.state)     by another tensor that the next call reads

A buffer has a stage, a device and a process that own it, and a plain tensor has not. The model's
code sees no difference, and the buffer is in no `state_dict`.
"""

from collections.abc import Collection, Iterator
from operator import attrgetter

from torch import Tensor, fx, nn

from skyfx.runtime import pytree
from skyfx.runtime.model_state import attribute_slots, state_slots
from skyfx.solver.errors import CaptureError
from skyfx.tracing.failures import line_of
from skyfx.tracing.node_names import graphs_in
from skyfx.tracing.torch_internals import storage_id, written_arguments


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Attributes that are tensors without a gradient, by their names from the model on."""
    return {
        slot.name: slot.value
        for path, module in model.named_modules()
        for slot in attribute_slots(module, f"{path}." if path else "")
        if isinstance(slot.value, Tensor) and not slot.value.requires_grad
    }


def written_attributes(model: nn.Module, module: fx.GraphModule) -> list[str]:
    """The plain tensors of the model that a captured graph writes to in place.

    Raises:
        CaptureError: one is in a container, where it cannot become a buffer.
    """
    names = {id(x): name for name, x in plain_tensors(model).items()}
    owned = {*names, *map(id, model.parameters()), *map(id, model.buffers())}
    inside = {
        id(x): slot.name
        for slot in state_slots(model)
        for x in pytree.tree_leaves(slot.value)
        if isinstance(x, Tensor) and id(x) not in owned
    }
    written = (
        {x for node in module.graph.nodes for x in _written_storages(node)}
        if names or inside
        else set()
    )
    found = []
    for node in module.graph.find_nodes(op="get_attr"):
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or storage_id(value) not in written:
            continue
        own = id(attrgetter(str(node.target))(module))
        if own in inside:
            raise CaptureError(
                f"forward writes in place to a tensor in {inside[own]!r}"
                f"{line_of(model, inside[own])}, which no stage owns.\n"
                "Keep it in an attribute or a buffer of its own (register_buffer)"
            )
        if own in names:
            found.append(names[own])
    return found


class RegisteredBuffers:
    """Makes attributes of a model buffers; `undo` makes them attributes again."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._made: list[tuple[nn.Module, str]] = []

    def register(self, names: Collection[str]) -> None:
        """Make these attributes buffers that are in no `state_dict`; they stay the same tensors."""
        for name in names:
            path, _, key = name.rpartition(".")
            module = self._model.get_submodule(path)
            module.register_buffer(key, vars(module).pop(key), persistent=False)
            self._made.append((module, key))

    def undo(self) -> None:
        """Make them plain tensors again."""
        for module, key in self._made:
            value = getattr(module, key)
            delattr(module, key)
            vars(module)[key] = value


def _written_storages(node: fx.Node) -> Iterator[int]:
    """The memory that a node may write to, of what it is given."""
    bodies = [getattr(node.graph.owning_module, str(x.target), None) for x in node.all_input_nodes]
    inner = [
        each
        for body in bodies
        if isinstance(body, fx.GraphModule)
        for part in graphs_in(body)
        for each in part.graph.nodes
    ]
    is_writing = any(any(True for _ in written_arguments(each)) for each in inner)
    given = node.all_input_nodes if is_writing else list(written_arguments(node))
    for leaf in pytree.tree_leaves(given):
        values = leaf.meta.get("val") if isinstance(leaf, fx.Node) else None
        for value in pytree.tree_leaves(values):
            if isinstance(value, Tensor):
                yield storage_id(value)
