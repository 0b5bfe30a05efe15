"""What one micro-batch keeps: the tensors that autograd saves from forward to backward, by node."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor, fx

from skyfx.measurement.operator_costs import OperatorCosts
from skyfx.passes.call_signature import of_tensors
from skyfx.passes.planner_graph import num_bytes
from skyfx.runtime import pytree
from skyfx.tracing.capture import Capture
from skyfx.tracing.torch_internals import storage_id


@dataclass(frozen=True, slots=True)
class SavedTensors:
    """What a node keeps.

    Attributes:
        first_bytes: of what no node before it keeps.
        kept: bytes by the id of the node that made them, without what it makes for itself alone.
    """

    first_bytes: float = 0.0
    kept: dict[str, float] = field(default_factory=dict)


def saved_tensors(captured: Capture, prices: OperatorCosts) -> dict[str, SavedTensors]:
    """What each node keeps, by its name.

    Parameters and buffers do not count, they are there anyway.
    """
    graph = captured.module.graph
    counted = {s for node in graph.find_nodes(op="get_attr") for s, _ in _storages(node)}
    resident, makers = frozenset(counted), dict[Hashable, str]()
    found: dict[str, SavedTensors] = {}
    for node in graph.nodes:
        if node in captured.ids:
            for storage, _ in _storages(node):
                makers.setdefault(storage, captured.ids[node])
        cost = prices.costs.get(node.name)
        if cost is None:
            continue
        inputs, outputs = of_tensors(node, _storages), _storages(node)
        saved = dict(inputs[i] for i in cost.saves_inputs)
        saved |= dict(outputs[i] for i in cost.saves_outputs)
        new = saved.keys() - counted
        counted |= new
        first_bytes = cost.saves_bytes + sum(saved[storage] for storage in new)
        kept = dict[str, float]()
        for storage in saved.keys() - resident:
            maker = makers[storage]
            kept[maker] = kept.get(maker, 0.0) + saved[storage]
        found[node.name] = SavedTensors(first_bytes, dict(sorted(kept.items())))
    return found


def _storages(node: fx.Node) -> list[tuple[Hashable, int]]:
    """The storages of the node's value, as torch.export's fake tensors share them, and bytes."""
    leaves = pytree.tree_leaves(node.meta.get("val"))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [(storage_id(x), _nbytes(x)) for x in tensors]


def _nbytes(tensor: Tensor) -> int:
    """Bytes of its storage; of an input that is a part of a batch, its own."""
    size = tensor.untyped_storage().nbytes()
    return size if type(size) is int else num_bytes(tensor)
