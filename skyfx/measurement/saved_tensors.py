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
        kept: bytes as a graph file has them, by the id of the node that made them.
        storage: the node that made the memory of its value, if it is another one.
    """

    first_bytes: float = 0.0
    kept: dict[str, float] = field(default_factory=dict)
    storage: str | None = None


def saved_tensors(captured: Capture, prices: OperatorCosts) -> dict[str, SavedTensors]:
    """What each node keeps, by its name.

    Parameters and buffers do not count, they are there anyway.
    """
    graph = captured.module.graph
    counted = {s for node in graph.find_nodes(op="get_attr") for s, _ in _storages(node)}
    makers: dict[Hashable, str] = dict.fromkeys(counted, "")
    found: dict[str, SavedTensors] = {}
    for node in graph.nodes:
        if node not in captured.ids:
            continue
        outputs, made_by = _storages(node), captured.ids[node]
        shared = next((makers[s] for s, _ in outputs if s in makers), None)
        for i, (storage, _) in enumerate(outputs):
            makers.setdefault(storage, f"{made_by}#{i}" if i else made_by)
        cost = prices.costs.get(node.name)
        if cost is None:
            found[node.name] = SavedTensors(storage=shared)
            continue
        inputs = of_tensors(node, _storages)
        saved = dict(inputs[i] for i in cost.saves_inputs)
        saved |= dict(outputs[i] for i in cost.saves_outputs)
        new = saved.keys() - counted
        counted |= new
        first_bytes = cost.saves_bytes + sum(saved[storage] for storage in new)
        kept: dict[str, float] = {
            makers[storage]: size for storage, size in saved.items() if makers[storage]
        }
        kept |= {"": cost.saves_bytes} if cost.saves_bytes else {}
        found[node.name] = SavedTensors(first_bytes, dict(sorted(kept.items())), shared)
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
